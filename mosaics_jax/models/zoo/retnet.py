"""RetNet (Sun et al. 2023, arXiv 2307.08621): retention, which is linear attention with one constant decay per head.

Shapes here: J channels of all values (2 C of them), E width of a value.
"""

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
    """The config of `RetNet`: no fields of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rotary(self.n_embd, self.n_head)


class Retention(nn.Module):
    """(swish(x W_G) * GroupNorm(y)) W_O for y_t = sum_{s<=t} gamma^{t-s} (q_t.k_s) v_s (eq. 5-8).

    (B, T, C) to the same shape. gamma_h = 1 - 2^(-5-h), h = 0 .. H - 1. Queries and keys are rotated by their positions
    (`rotate`), which together with the decay is xPos. Values and gates have 2 C channels (section 3.1). Each head is
    normalised, without learned scales, so that scores need no factor 1/sqrt(D). Projections are initialised as the
    transformer's.
    """

    heads: int
    std: float
    output_std: float
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]
        common = {"bias": self.bias, "dtype": self.dtype}
        projected = Projection(6 * width, self.std, name="qkvg", **common)(x_BTC)
        *parts, gates_BTJ = jnp.split(projected, [width, 2 * width, 4 * width], axis=-1)
        queries_BTHD, keys_BTHD, values_BTHE = (split_heads(part, self.heads) for part in parts)
        log_decay_H = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(self.heads))))
        log_decay_11H1 = log_decay_H[None, None, :, None]
        answers_BTHE, _ = linear_recurrence(rotate(queries_BTHD), rotate(keys_BTHD), values_BTHE, log_decay_11H1)
        norm = nn.LayerNorm(EPSILON, use_bias=False, use_scale=False, use_fast_variance=False, dtype=self.dtype)
        gated_BTJ = jax.nn.silu(gates_BTJ) * merge_heads(norm(answers_BTHE))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(gated_BTJ)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class RetNet(ZooModel):
    """Retention, whose values are wider, and feed-forward layers of hidden width 2 C: the size of the transformer."""

    config: RetNetConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Retention."""
        return functools.partial(Retention, heads=self.config.n_head, **self.unit_fields())

    def feed_forward(self, layer: int | None) -> Callable[..., nn.Module]:
        """A feed-forward layer half as wide as the transformer's (section 3.1)."""
        return functools.partial(FeedForward, hidden=2 * self.config.n_embd, **self.unit_fields())
