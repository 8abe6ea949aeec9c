"""The network of the three moons (v1 section 4, appendix A): contextual memories whose maps are complex-linear.

Shapes here: I rows of a matrix, J columns.
"""

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
    """Config of a `MoonMosaic`. A moon is one complex number, two channels (sin, cos) of the signal: C = 2 moons."""

    moons: int = setting(3, "moons of the signal")
    heads: int = setting(3, "H: memory units; each has 2 moons / heads channels")
    sharpness: float = setting(50.0, "beta in the weights exp(beta k . k')")

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
    """Predicts the next point of a signal at each position, (B, T, C) to (B, T, C); position 0, without a past, is 0.

    Keys k_t = W_phi x_t and values v_t = W_psi x_{t+1} are neither averaged nor normalised. W_z maps the answers of all
    heads to the prediction. Each of the three is a complex matrix (moons, moons), stored as real and imaginary part,
    (2, moons, moons): 54 numbers for three moons. Head h has the rows h moons / H to (h + 1) moons / H of W_phi and
    W_psi, and the same columns of W_z.
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


def real_form(w_2IJ: Array) -> Array:
    """The real matrix (2 I, 2 J) that acts on channels (sin, cos) as the complex matrix (I, J) acts on sin - i cos.

    The entry a + i b of the complex matrix becomes the block [[a, b], [-b, a]].
    """
    real_IJ, imaginary_IJ = w_2IJ[0], w_2IJ[1]
    blocks_IJ22 = jnp.stack([jnp.stack([real_IJ, imaginary_IJ], -1), jnp.stack([-imaginary_IJ, real_IJ], -1)], -2)
    return jnp.swapaxes(blocks_IJ22, 1, 2).reshape(2 * w_2IJ.shape[1], 2 * w_2IJ.shape[2])


def complex_form(matrix_IJ: Array) -> Array:
    """The complex matrix (2, I / 2, J / 2) whose real form is nearest to a real matrix.

    It is the mean of the entries that agree in a real form.
    """
    blocks_I2J2 = matrix_IJ.reshape(matrix_IJ.shape[0] // 2, 2, matrix_IJ.shape[1] // 2, 2)
    real_IJ = (blocks_I2J2[:, 0, :, 0] + blocks_I2J2[:, 1, :, 1]) / 2
    imaginary_IJ = (blocks_I2J2[:, 0, :, 1] - blocks_I2J2[:, 1, :, 0]) / 2
    return jnp.stack([real_IJ, imaginary_IJ])


def projected_uniform(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """An initialiser: the complex form of a real matrix of U(-1/sqrt(C), 1/sqrt(C)) entries (v1 appendix A)."""
    _, rows, columns = shape
    bound = 1 / math.sqrt(2 * columns)
    return complex_form(jax.random.uniform(key, (2 * rows, 2 * columns), dtype, -bound, bound))


def moduli(w: Array) -> Array:
    """The moduli of the entries of complex matrices: (..., 2, I, J) to (..., I, J)."""
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=-3))
