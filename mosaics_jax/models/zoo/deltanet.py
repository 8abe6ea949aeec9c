"""DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484): fast weights that correct."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import EPSILON, Projection, constant, merge_heads, split_heads
from mosaics_jax.ops import unit
from mosaics_jax.ops.delta_rule import delta_rule
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class DeltaNetConfig(ZooConfig):
    """No fields of its own."""


class DeltaAttention(nn.Module):
    """RMSNorm(y) W_O for y_t = S_t^T q_t, S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T (Schlag eq. 24).

    (B, T, C) to the same. As in Yang et al., section 3.3: queries and keys unit(silu(x W)), write strengths
    b = sigmoid(x W_b), one a head, values x W_v, and each head normalised by itself over learned scales that heads
    share. Projections begin as the transformer's, so that all strengths begin near 1/2.
    """

    heads: int
    std: float
    output_std: float
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The whole sequence."""
        width = x_BTC.shape[-1]
        common = {"bias": self.bias, "dtype": self.dtype}
        qkv = Projection(3 * width, self.std, name="qkv", **common)(x_BTC)
        queries, keys, values = (split_heads(part, self.heads) for part in jnp.split(qkv, 3, axis=-1))
        queries, keys = unit(jax.nn.silu(queries)), unit(jax.nn.silu(keys))
        strength_BTH = jax.nn.sigmoid(Projection(self.heads, self.std, ("embed", "head"), name="beta", **common)(x_BTC))
        answers, _ = delta_rule(queries, keys, values, strength_BTH)
        norm = nn.RMSNorm(EPSILON, scale_init=constant(1.0, "norm"), dtype=self.dtype, name="norm")
        answers = merge_heads(norm(answers))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(answers)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class DeltaNet(ZooModel):
    """The delta rule and feed-forward layers.

    Of the paper's network, its short convolutions of queries, keys and values are ``short_convolution``, one before
    them all; its feed-forward layers have a gate (SwiGLU), these are the transformer's.
    """

    config: DeltaNetConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The delta rule."""
        return functools.partial(DeltaAttention, heads=self.config.n_head, **self.unit_fields())
