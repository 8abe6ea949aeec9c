"""Unit vectors with a value and a gradient that are finite everywhere."""

import jax.numpy as jnp

from mosaics_jax.shapes import Array

# Below this squared norm a vector counts as zero. Its power -3/2, which the gradient needs, still fits a float32.
SMALLEST_SQUARE = 1e-24


def accumulation_dtype(x: Array) -> jnp.dtype:
    """The type that sums over ``x`` are kept in: float32, or float64 for float64 input."""
    return jnp.promote_types(x.dtype, jnp.float32)


def unit(x: Array, eps: float = 0.0) -> Array:
    """``x / (|x| + eps)`` along the last axis; 0 with gradient 0 where ``x`` is zero (v1 eq. 5, 6: Norm).

    Any shape; computed and returned in at least float32. The authors' ``Library`` has eps 0, ``nanoMosaics`` 1e-10.
    """
    x = x.astype(accumulation_dtype(x))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    nonzero = square > SMALLEST_SQUARE
    norm = jnp.sqrt(jnp.where(nonzero, square, 1.0))
    return jnp.where(nonzero, x / (norm + eps), 0.0)
