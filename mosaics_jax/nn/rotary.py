"""Rotary positions (Su et al. 2021, arXiv 2104.09864, RoFormer): a dot product that knows the distance."""

import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

BASE = 10000.0


def check_rotary(n_embd: int, n_head: int) -> None:
    """Raises ValueError unless the channels of a head come in pairs."""
    if n_embd // n_head % 2:
        raise ValueError(f"n_embd={n_embd} / n_head={n_head} must be even: rotary positions turn pairs of channels")


def rotate(x_BTHD: Array, start_B: Array | None = None) -> Array:
    """Turns pair i of channels at position t by the angle t 10000^(-2i/D) (eq. 34): same shape and type.

    A pair is channel i and channel i + D/2: the paper's order of channels but for a permutation, which projections
    learn anyway. start_B: int32, position of each row's first entry (default 0). D must be even.
    """
    time, half = x_BTHD.shape[1], x_BTHD.shape[-1] // 2
    dtype = accumulation_dtype(x_BTHD)
    start = jnp.zeros(1, jnp.int32) if start_B is None else start_B
    position_BT = (start[:, None] + jnp.arange(time)).astype(dtype)
    frequency_D = BASE ** (-jnp.arange(half, dtype=dtype) / half)
    angle = position_BT[:, :, None, None] * frequency_D
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x_BTHD[..., :half].astype(dtype), x_BTHD[..., half:].astype(dtype)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x_BTHD.dtype)
