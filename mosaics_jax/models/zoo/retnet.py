"""RetNet (Sun et al. 2023, arXiv 2307.08621): retention, linear attention under a constant decay a head."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.layers import EPSILON, Projection, merge_heads, split_heads
from mosaics_jax.nn.rotary import check_rotary, rotate
from mosaics_jax.ops.linear_recurrence import linear_recurrence
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class RetNetConfig(ZooConfig):
    """No fields of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotary(self.n_embd, self.n_head)


class Retention(nn.Module):
    """(swish(x W_G) * GroupNorm(y)) W_O for y_t = sum_{s<=t} gamma^{t-s} (q_t.k_s) v_s, eq. 5-8. (B, T, C) to the same.

    gamma_h = 1 - 2^(-5-h), h = 0 .. H - 1. Queries and keys are turned by their positions; with the decay this is xPos.
    Values and gates have the width 2 C (section 3.1). Each head is normalised by itself, without learned scales, so
    that scores need no 1/sqrt(D). Projections begin as the transformer's.
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
        projected = Projection(6 * width, self.std, name="qkvg", **common)(x_BTC)
        queries, keys, values, gates = jnp.split(projected, [width, 2 * width, 4 * width], axis=-1)
        queries, keys, values = (split_heads(part, self.heads) for part in (queries, keys, values))
        log_decay_H = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(self.heads))))
        answers, _ = linear_recurrence(rotate(queries), rotate(keys), values, log_decay_H[None, None, :, None])
        norm = nn.LayerNorm(EPSILON, use_bias=False, use_scale=False, use_fast_variance=False, dtype=self.dtype)
        gated_BTF = jax.nn.silu(gates) * merge_heads(norm(answers))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(gated_BTF)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class RetNet(ZooModel):
    """Retention and feed-forward layers of hidden width 2 C: with the wider values, the transformer's size."""

    config: RetNetConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Retention."""
        return functools.partial(Retention, heads=self.config.n_head, **self.unit_fields())

    def feed_forward(self, layer: int | None) -> Callable[..., nn.Module]:
        """Half as wide as the transformer's (section 3.1)."""
        return functools.partial(FeedForward, hidden=2 * self.config.n_embd, **self.unit_fields())
