"""Normalisation to unit length, with values and gradients that are finite everywhere."""

import jax.numpy as jnp

from mosaics_jax.shapes import Array

# A vector with a smaller squared norm counts as zero. The gradient contains the square to the power -3/2, which still
# fits a float32 at this value.
SMALLEST_SQUARE = 1e-24


def accumulation_dtype(x: Array) -> jnp.dtype:
    """The type in which sums over ``x`` are accumulated: float32, or float64 if ``x`` is float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def unit(x: Array, eps: float = 0.0) -> Array:
    """``x / (|x| + eps)`` along the last axis; 0 with gradient 0 where ``x`` is zero (v1 eq. 5, 6: Norm).

    ``x`` may have any shape. Computed and returned in at least float32. eps: 0 in the authors' ``Library``, 1e-10 in
    their ``nanoMosaics``.
    """
    x = x.astype(accumulation_dtype(x))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    nonzero = square > SMALLEST_SQUARE
    norm = jnp.sqrt(jnp.where(nonzero, square, 1.0))
    return jnp.where(nonzero, x / (norm + eps), 0.0)
