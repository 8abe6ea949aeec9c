"""Results of products, by a name that tells them from all else where a block is computed again for backward.

`jax.checkpoint` finds no product in a function with a gradient of its own, and retrieval has its products inside of
loops: so each names what it makes, and remat="dots" keeps what has the name.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

from mosaics_jax.shapes import Array

PRODUCT = "product"
KEEP_PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT)


def product(x: Array) -> Array:
    """``x``, marked: the result of a projection, or an answer or a sum of weights that retrieval's backward needs."""
    return checkpoint_name(x, PRODUCT)
