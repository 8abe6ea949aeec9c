"""Dropout of retrieval weights by a counter-based hash, so that every form and every mesh drops the same entries."""

import jax.numpy as jnp

from mosaics_jax.shapes import Array


def _mix(x: Array) -> Array:
    """A bijective scrambling of 32-bit integers (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def keep_mask(seed: Array, row: Array, column: Array, rate: float) -> Array:
    """True where a weight is kept: a pure function of (seed, row, column).

    seed: uint32 scalar. row, column: integers that broadcast together; ``row`` numbers (batch, head, query), ``column``
    the pair. rate: share of entries dropped, in [0, 1).
    """
    row_hash = _mix(row.astype(jnp.uint32) ^ _mix(seed.astype(jnp.uint32)))
    bits = _mix(row_hash + column.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def check_seed(rate: float, seed: Array | None) -> Array:
    """The seed, or 0 where nothing is dropped. Raises ValueError if there is a rate but no seed."""
    if rate > 0 and seed is None:
        raise ValueError("dropout_rate > 0 needs a dropout_seed")
    return jnp.zeros((), jnp.uint32) if seed is None else seed


def row_numbers(batch: int, heads: int, time: int) -> Array:
    """(B, H, T): the number of each (batch, head, query), for the dropout hash."""
    return jnp.arange(batch * heads * time).reshape(batch, heads, time)
