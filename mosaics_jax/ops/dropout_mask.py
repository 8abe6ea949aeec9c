"""Dropout masks of retrieval weights from a counter-based hash: every form and every mesh drops the same weights."""

import jax.numpy as jnp

from mosaics_jax.shapes import Array


def _mix(x: Array) -> Array:
    """A bijective hash of 32-bit integers (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def keep_mask(seed: Array, row: Array, column: Array, rate: float) -> Array:
    """True where dropout keeps a weight: a pure function of (seed, row, column).

    seed: uint32 scalar. row, column: integers that broadcast against each other; ``row`` is the number of the query
    among all queries of the batch (`row_numbers`), ``column`` the number of the pair. rate: the share of weights that
    is dropped, in [0, 1).
    """
    row_hash = _mix(row.astype(jnp.uint32) ^ _mix(seed.astype(jnp.uint32)))
    bits = _mix(row_hash + column.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def check_seed(rate: float, seed: Array | None) -> Array:
    """The seed; 0 if there is none. Raises ValueError if ``rate`` is positive and there is no seed."""
    if rate > 0 and seed is None:
        raise ValueError("dropout_rate > 0 needs a dropout_seed")
    return jnp.zeros((), jnp.uint32) if seed is None else seed


def row_numbers(batch: int, heads: int, time: int) -> Array:
    """(B, H, T): the number of each query among all queries of the batch, as `keep_mask` needs it."""
    return jnp.arange(batch * heads * time).reshape(batch, heads, time)
