"""Causal convolution over a few positions, channel by channel: it gives a mixer information about local order."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.nn.layers import constant
from mosaics_jax.shapes import Array, Dtype


class ShortConvolution(nn.Module):
    """y_t = b + sum_s w_s x_{t - s}, s = 0 .. taps - 1, channel by channel. (B, T, C) to the same shape.

    Parameters: ``kernel`` (S, C) ~ U(-1/sqrt(S), 1/sqrt(S)), whose last tap is the current position, and optionally
    ``bias`` (C,) = 0. ``axis``: the logical axis of the channels. Mamba has this convolution before its selective
    scan (Gu & Dao 2023, figure 3).
    """

    taps: int
    axis: str = "embed"
    bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        bound = self.taps**-0.5

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        time, width = x_BTC.shape[1:]
        init = nn.with_logical_partitioning(uniform, ("taps", self.axis))
        kernel_SC = jnp.asarray(self.param("kernel", init, (self.taps, width)), self.dtype)
        padded_BTC = jnp.pad(x_BTC.astype(self.dtype), ((0, 0), (self.taps - 1, 0), (0, 0)))
        y_BTC = functools.reduce(jnp.add, (padded_BTC[:, s : s + time] * kernel_SC[s] for s in range(self.taps)))
        if self.bias:
            y_BTC += self.param("bias", constant(0.0, self.axis), (width,)).astype(self.dtype)
        return y_BTC


class Convolved(nn.Module):
    """A short convolution, followed by the unit that ``inner`` makes. (B, T, C) to the same shape."""

    inner: Callable[..., nn.Module]
    taps: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        x_BTC = ShortConvolution(self.taps, dtype=self.dtype, name="convolution")(x_BTC)
        return self.inner(name="inner")(x_BTC, train)
