"""Rotary positions (Su et al. 2021, arXiv 2104.09864, RoFormer): dot products depend on the distance of positions.

Shapes here: J pairs of channels.
"""

import jax.numpy as jnp

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

BASE = 10000.0  # of the geometric sequence of angles


def check_rotary(n_embd: int, n_head: int) -> None:
    """Raises ValueError if the width of a head is odd."""
    if n_embd // n_head % 2:
        raise ValueError(f"n_embd={n_embd} / n_head={n_head} must be even: rotary positions rotate pairs of channels")


def rotate(x_BTHD: Array, start_B: Array | None = None) -> Array:
    """Rotates pair i of channels at position t by the angle t 10000^(-2i/D) (eq. 34). Same shape and type.

    Pair i is channel i and channel i + D/2. The paper pairs neighbouring channels; the two differ by a permutation of
    channels, which a projection can absorb. start_B: int32, the position of each row's first entry (default: 0). D must
    be even.
    """
    time, half = x_BTHD.shape[1], x_BTHD.shape[-1] // 2
    dtype = accumulation_dtype(x_BTHD)
    start_B = jnp.zeros(1, jnp.int32) if start_B is None else start_B
    position_BT = (start_B[:, None] + jnp.arange(time)).astype(dtype)
    frequency_J = BASE ** (-jnp.arange(half, dtype=dtype) / half)
    angle_BT1J = position_BT[:, :, None, None] * frequency_J
    cos_BT1J, sin_BT1J = jnp.cos(angle_BT1J), jnp.sin(angle_BT1J)
    first_BTHJ, second_BTHJ = x_BTHD[..., :half].astype(dtype), x_BTHD[..., half:].astype(dtype)
    rotated = first_BTHJ * cos_BT1J - second_BTHJ * sin_BT1J, first_BTHJ * sin_BT1J + second_BTHJ * cos_BT1J
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHD.dtype)
