"""Associative memory: kernel regression over stored key-value pairs (v1 eq. 1-3).

    f(k) = sum_i w_i v_i,    w_i proportional to exp(-beta |k - k_i|^2)

An empty memory, or a row whose mask admits no pair, answers 0 with gradient 0.
"""

import chex
import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array


def masked_softmax(scores: Array, mask: Array | None = None) -> Array:
    """Softmax over the last axis among entries where ``mask`` holds; a row with none is all zero, gradient too."""
    if mask is None:
        mask = jnp.ones((), bool)
    if scores.shape[-1] == 0:
        return scores
    top = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - top, 0.0)), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def _check(queries: Array, keys: Array, values: Array) -> None:
    chex.assert_equal_shape_suffix([queries, keys], 1)
    chex.assert_equal(keys.shape[-2], values.shape[-2])


def gaussian_regression(
    queries: Array, keys: Array, values: Array, beta: Array | float, mask: Array | None = None
) -> Array:
    """Nadaraya-Watson regression with the Gaussian kernel, for keys of any norm (v1 eq. 2).

    Shapes: queries (..., T, D), keys (..., N, D), values (..., N, E), mask (..., T, N) of bool; beta, per squared
    distance, a scalar or anything that broadcasts against (..., 1, 1). Returns (..., T, E) in the type of the values;
    scores are kept in at least float32.
    The query's own squared norm is common to a row and cancels, which leaves one matrix product.
    """
    _check(queries, keys, values)
    dtype = accumulation_dtype(queries)
    half_square = 0.5 * jnp.sum(jnp.square(keys.astype(dtype)), -1)[..., None, :]
    half_distance = jnp.einsum("...td,...nd->...tn", queries, keys, preferred_element_type=dtype) - half_square
    weights = masked_softmax(2.0 * beta * half_distance, mask).astype(values.dtype)
    return jnp.einsum("...tn,...ne->...te", weights, values)


def gaussian_regression_naive(
    queries: Array, keys: Array, values: Array, beta: Array | float, mask: Array | None = None
) -> Array:
    """The definition, from the differences themselves."""
    difference = queries[..., :, None, :] - keys[..., None, :, :]
    kernel = jnp.exp(-beta * jnp.sum(difference**2, axis=-1))
    if mask is not None:
        kernel = jnp.where(mask, kernel, 0.0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return jnp.einsum("...tn,...ne->...te", kernel / jnp.where(total > 0, total, 1.0), values)


def unit_key_regression(
    queries: Array, keys: Array, values: Array, beta: Array | float = 1.0, mask: Array | None = None
) -> Array:
    """Regression with weights softmax(beta k.k_i): the Gaussian form for keys of equal norm (v1 eq. 3).

    Shapes as `gaussian_regression`. For keys of norm one it equals that function at half this beta.
    """
    _check(queries, keys, values)
    scores = beta * jnp.einsum("...td,...nd->...tn", queries, keys, preferred_element_type=accumulation_dtype(queries))
    return jnp.einsum("...tn,...ne->...te", masked_softmax(scores, mask).astype(values.dtype), values)
