"""Marks for the results of matrix products, so that rematerialisation can save them.

`jax.checkpoint` cannot see the matrix products inside a loop or inside a function with a custom gradient. The functions
of this package mark the results of their products with `product` instead. remat="dots" saves the marked arrays
(`KEEP_PRODUCTS`) and recomputes the others in the backward pass.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

from mosaics_jax.shapes import Array

PRODUCT = "product"
KEEP_PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT)


def product(x: Array) -> Array:
    """``x``, marked: the output of a projection, or an answer or sum of weights that retrieval's gradient reads."""
    return checkpoint_name(x, PRODUCT)
