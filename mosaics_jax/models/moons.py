"""The network of three moons (v1 section 4, appendix A): one contextual memory a head, all maps complex-linear."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.layers import merge_heads
from mosaics_jax.ops import RetrievalForm, linear_memory
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class MoonMosaicConfig:
    """A moon is one complex number, two channels (sin, cos) of the signal: C = 2 moons."""

    moons: int = setting(3, "moons of the signal")
    heads: int = setting(3, "memory units H, which share the moons: each is 2 moons / heads channels wide")
    sharpness: float = setting(50.0, "factor of the scores, beta in exp(beta k . k')")

    def __post_init__(self) -> None:
        if self.moons < 1 or self.heads < 1:
            raise ValueError(f"moons={self.moons} and heads={self.heads} must be at least 1")
        if self.heads > self.moons:
            raise ValueError(f"heads={self.heads} are more than moons={self.moons}: give each head a moon or several")
        if self.moons % self.heads:
            raise ValueError(f"heads={self.heads} must divide moons={self.moons}: all heads have one width")
        if not self.sharpness > 0:
            raise ValueError(f"sharpness={self.sharpness} must be positive")


class MoonMosaic(nn.Module):
    """Predicts each next point of a signal: (B, T, C) to (B, T, C), of which row 0, without a past, is 0.

    Keys k_t = W_phi x_t and values v_t = W_psi x_{t+1} are not normalised, nothing is averaged; the answers of all
    heads are combined by W_z. Each of the three is a complex matrix (moons, moons), kept as its real and imaginary
    part, (2, moons, moons): 54 numbers for three moons. Head h owns rows h m / H ... of W_phi and W_psi, and these
    columns of W_z.
    """

    config: MoonMosaicConfig
    retrieval: RetrievalForm = RetrievalForm.AUTO

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        c = self.config
        if x_BTC.ndim != 3 or x_BTC.shape[-1] != 2 * c.moons:
            raise ValueError(f"a signal of shape {x_BTC.shape}: (batch, time, {2 * c.moons}) is needed")
        init = nn.with_logical_partitioning(projected_uniform, (None, None, None))
        matrices = [self.param(name, init, (2, c.moons, c.moons)) for name in ("W_phi", "W_psi", "W_z")]
        w_phi, w_psi, w_z = (real_form(jnp.asarray(matrix)) for matrix in matrices)
        w_phi_HDC, w_psi_HDC = (w.reshape(c.heads, -1, 2 * c.moons) for w in (w_phi, w_psi))
        answers_BTHD = linear_memory(x_BTC, w_phi_HDC, w_psi_HDC, c.sharpness, self.retrieval)
        return jnp.einsum("btd,cd->btc", merge_heads(answers_BTHD), w_z)


def real_form(w: Array) -> Array:
    """The real matrix (2m, 2n) that acts on channels (sin, cos) as the complex one, (2, m, n), acts on sin + i cos.

    Each entry a + i b becomes the block [[a, b], [-b, a]].
    """
    real, imaginary = w[0], w[1]
    blocks = jnp.stack([jnp.stack([real, imaginary], -1), jnp.stack([-imaginary, real], -1)], -2)
    return jnp.swapaxes(blocks, 1, 2).reshape(2 * w.shape[1], 2 * w.shape[2])


def complex_form(matrix: Array) -> Array:
    """The complex-linear matrix nearest to a real one, (2m, 2n) to (2, m, n): means of the entries that must agree."""
    blocks = matrix.reshape(matrix.shape[0] // 2, 2, matrix.shape[1] // 2, 2)
    real = (blocks[:, 0, :, 0] + blocks[:, 1, :, 1]) / 2
    imaginary = (blocks[:, 0, :, 1] - blocks[:, 1, :, 0]) / 2
    return jnp.stack([real, imaginary])


def projected_uniform(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """A real matrix of U(-1/sqrt(C), 1/sqrt(C)), projected on the complex-linear ones (v1 appendix A)."""
    _, rows, columns = shape
    bound = 1 / math.sqrt(2 * columns)
    return complex_form(jax.random.uniform(key, (2 * rows, 2 * columns), dtype, -bound, bound))


def moduli(w: Array) -> Array:
    """|W| of a complex matrix kept as real and imaginary part: (..., 2, m, n) to (..., m, n)."""
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=-3))
