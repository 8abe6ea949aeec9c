"""Associative memory: kernel regression over stored key-value pairs (v1 eq. 1-3).

    f(k) = sum_i w_i v_i,    w_i proportional to exp(-beta |k - k_i|^2)

A query without pairs, because the memory is empty or the mask excludes all pairs, is answered by 0 with gradient 0.

Shapes here: E width of a value.
"""

import chex
import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.weights import drop, masked_softmax
from mosaics_jax.shapes import Array


def unit_key_regression(
    queries: Array,
    keys: Array,
    values: Array,
    beta: Array | float = 1.0,
    mask: Array | None = None,
    keep: Array | None = None,
    rate: float = 0.0,
) -> Array:
    """Regression with weights softmax(beta k.k_i): the Gaussian kernel for keys of equal norm (v1 eq. 3).

    Shapes: queries (..., T, D), keys (..., N, D), values (..., N, E), mask and keep (..., T, N) of bool; beta is a
    scalar or broadcasts against (..., 1, 1). Returns (..., T, E) in the type of the values; scores are computed in at
    least float32. ``mask``: the pairs that each query sees (default: all). ``keep``: the weights that dropout at
    ``rate`` keeps (default: all). For keys of norm 1 this equals `gaussian_regression` at half of this beta.
    """
    chex.assert_equal_shape_suffix([queries, keys], 1)
    chex.assert_equal(keys.shape[-2], values.shape[-2])
    scores = jnp.einsum("...td,...nd->...tn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    weights = drop(masked_softmax(beta * scores, mask), keep, rate).astype(values.dtype)
    return jnp.einsum("...tn,...ne->...te", weights, values)


def gaussian_regression(
    queries: Array, keys: Array, values: Array, beta: Array | float, mask: Array | None = None
) -> Array:
    """Nadaraya-Watson regression with the Gaussian kernel, for keys of any norm (v1 eq. 2).

    Arguments and result are as in `unit_key_regression`; beta is in units of 1 / squared distance.
    """
    wide = accumulation_dtype(keys)
    return unit_key_regression(*gaussian_pair(queries.astype(wide), keys.astype(wide)), values, 2.0 * beta, mask)


def gaussian_pair(queries: Array, keys: Array) -> tuple[Array, Array]:
    """Queries and keys (..., D) with one channel appended, so that softmax over their dot products is v1 eq. 2.

    The appended channel is 1 for a query and -|k|^2 / 2 for a key. A dot product is then q.k - |k|^2 / 2, which differs
    from -|q - k|^2 / 2 by |q|^2 / 2. This difference is the same for all pairs of a query, so that softmax cancels it.
    """
    half_square = 0.5 * jnp.sum(jnp.square(keys.astype(accumulation_dtype(keys))), axis=-1, keepdims=True)
    ones = jnp.ones((*queries.shape[:-1], 1), queries.dtype)
    return (
        jnp.concatenate([queries, ones], axis=-1),
        jnp.concatenate([keys, -half_square.astype(keys.dtype)], axis=-1),
    )


def gaussian_regression_naive(
    queries: Array, keys: Array, values: Array, beta: Array | float, mask: Array | None = None
) -> Array:
    """`gaussian_regression` computed from the difference of each query and key."""
    difference = queries[..., :, None, :] - keys[..., None, :, :]
    kernel = jnp.exp(-beta * jnp.sum(difference**2, axis=-1))
    if mask is not None:
        kernel = jnp.where(mask, kernel, 0.0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return jnp.einsum("...tn,...ne->...te", kernel / jnp.where(total > 0, total, 1.0), values)
