"""Sequences split into chunks of positions, for recurrences that carry a state from chunk to chunk.

Shapes here: I chunks, Q positions of a chunk.
"""

import jax.numpy as jnp

from mosaics_jax.shapes import Array


def to_chunks(x: Array, size: int, axis: int) -> Array:
    """Splits (B, T, ...) into (I, B, ...) chunks of Q = ``size`` positions; the last chunk is padded with zeros.

    axis: the axis of the result that counts the positions of a chunk, at least 1. From (B, T, H, D), axis 3 gives
    (I, B, H, Q, D).
    """
    batch, time = x.shape[:2]
    chunks = -(-time // size)
    x = jnp.pad(x, ((0, 0), (0, chunks * size - time), *((0, 0) for _ in x.shape[2:])))
    return jnp.moveaxis(x.reshape(batch, chunks, size, *x.shape[2:]), (1, 2), (0, axis))


def from_chunks(x: Array, time: int, axis: int) -> Array:
    """The inverse of `to_chunks`: (I, B, ...) chunks to (B, T, ...), without the padding beyond ``time`` positions."""
    x = jnp.moveaxis(x, (0, axis), (1, 2))
    batch, chunks, size = x.shape[:3]
    return x.reshape(batch, chunks * size, *x.shape[3:])[:, :time]
