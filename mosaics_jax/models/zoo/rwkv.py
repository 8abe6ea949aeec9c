"""RWKV v4 (Peng et al. 2023, arXiv 2305.13048): averages of values with one decay per channel, gated by receptance."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import Projection, constant
from mosaics_jax.ops.wkv import wkv
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class RWKVConfig(ZooConfig):
    """The config of `RWKV`: no fields of its own."""


class TimeMix(nn.Module):
    """W_o (sigmoid(r) * wkv(k, v)); r, k and v are projections of mixed inputs (eq. 11-13, 16, 17).

    (B, T, C) to the same shape. The decay per position is exp of the parameter ``log_decay``. Initial values are those
    of the paper and the authors' code: mixtures, decays and bonuses depend on channel and block; W_k, W_r and W_o are
    zero; W_v ~ N(0, 1/sqrt(C)), as large as the authors' orthogonal matrix.
    """

    layer: int | None
    depth: int
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]
        x_BTC = x_BTC.astype(self.dtype)
        height, remaining = relative_heights(self.layer, self.depth)
        channel_C = np.arange(width)

        def mixed(name: str, initial_C: np.ndarray, std: float) -> Array:
            mix_C = self.param(f"{name}_mix", constant(initial_C, "embed"), (width,))
            return Projection(width, std, bias=self.bias, dtype=self.dtype, name=name)(token_shift(x_BTC, mix_C))

        receptance_BTC = mixed("receptance", (channel_C / width) ** (0.5 * remaining), 0.0)
        keys_BTC = mixed("key", (channel_C / width) ** remaining, 0.0)
        values_BTC = mixed("value", (channel_C / width) ** remaining + 0.3 * height, width**-0.5)
        log_decay_C = -5 + 8 * (channel_C / max(width - 1, 1)) ** (0.7 + 1.3 * height)
        bonus_C = math.log(0.3) + 0.5 * ((channel_C + 1) % 3 - 1)
        decay_C = jnp.exp(self.param("log_decay", constant(log_decay_C, "heads"), (width,)))
        averages_BTC, _ = wkv(keys_BTC, values_BTC, decay_C, self.param("bonus", constant(bonus_C, "heads"), (width,)))
        output = Projection(width, 0.0, ("heads", "embed"), self.bias, self.dtype, name="output")
        y_BTC = output(jax.nn.sigmoid(receptance_BTC) * averages_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class ChannelMix(nn.Module):
    """sigmoid(r) * W_v max(k, 0)^2; r and k are projections of mixed inputs (eq. 14, 15, 18).

    (B, T, C) to the same shape; k has F = ``hidden`` channels. Initially W_v and W_r are zero,
    and W_k ~ N(0, 1/sqrt(C)).
    """

    hidden: int
    layer: int | None
    depth: int
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]
        x_BTC = x_BTC.astype(self.dtype)
        _, remaining = relative_heights(self.layer, self.depth)
        initial_mix = constant((np.arange(width) / width) ** remaining, "embed")
        key_mix_C = self.param("key_mix", initial_mix, (width,))
        receptance_mix_C = self.param("receptance_mix", initial_mix, (width,))
        common = {"bias": self.bias, "dtype": self.dtype}
        key = Projection(self.hidden, width**-0.5, ("embed", "mlp"), name="key", **common)
        value = Projection(width, 0.0, ("mlp", "embed"), name="value", **common)
        receptance = Projection(width, 0.0, name="receptance", **common)
        keys_BTF = key(token_shift(x_BTC, key_mix_C))
        gate_BTC = jax.nn.sigmoid(receptance(token_shift(x_BTC, receptance_mix_C)))
        y_BTC = gate_BTC * value(jnp.square(jax.nn.relu(keys_BTF)))
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


def token_shift(x_BTC: Array, mix_C: Array) -> Array:
    """mu x_t + (1 - mu) x_{t-1}, with mu = ``mix_C`` per channel and x_{-1} = 0 (eq. 11-15)."""
    before_BTC = jnp.pad(x_BTC[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return before_BTC + mix_C.astype(x_BTC.dtype) * (x_BTC - before_BTC)


def relative_heights(layer: int | None, depth: int) -> tuple[float, float]:
    """l / (L - 1) and 1 - l / L of block l, on which the initial values depend.

    With `scan_layers`, ``layer`` is None, and all blocks have the initial values of a middle block.
    """
    block = (depth - 1) / 2 if layer is None else layer
    return block / max(depth - 1, 1), 1 - block / depth


class RWKV(ZooModel):
    """Time mixing in place of attention, channel mixing in place of feed-forward layers: 13 C^2 parameters per block.

    ``n_head`` has no effect. Left out: the layer normalisation of the embedding, and its tiny initial values.
    """

    config: RWKVConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Time mixing."""
        return functools.partial(TimeMix, layer, **self._fields())

    def feed_forward(self, layer: int | None) -> Callable[..., nn.Module]:
        """Channel mixing, of hidden width 4 C."""
        return functools.partial(ChannelMix, 4 * self.config.n_embd, layer, **self._fields())

    def _fields(self) -> dict[str, Any]:
        c = self.config
        return {"depth": c.n_layer, "bias": c.bias, "dropout": c.dropout, "dtype": jnp.dtype(c.dtype)}
