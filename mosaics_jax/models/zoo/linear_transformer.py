"""Linear transformer (Katharopoulos et al. 2020, arXiv 2006.16236): attention with a feature map instead of softmax.

Shapes here: E channels of a value and its normaliser.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import Projection, merge_heads, split_heads
from mosaics_jax.ops.linear_recurrence import linear_recurrence
from mosaics_jax.settings import check_sizes, setting
from mosaics_jax.shapes import Array, Dtype

EPSILON = 1e-6  # added to the normaliser, as in the authors' code


@dataclasses.dataclass(frozen=True)
class LinearTransformerConfig(ZooConfig):
    """The config of `LinearTransformer`, which has learned positions."""

    context_length: int = setting(512, "T: number of learned positions")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("context_length",))


class LinearAttention(nn.Module):
    """y_t = (sum_{s<=t} phi(q_t).phi(k_s) v_s) / (sum_{s<=t} phi(q_t).phi(k_s)), phi(x) = elu(x) + 1 (eq. 7, 9-12).

    (B, T, C) to the same shape. Projections are initialised as the transformer's.
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
        qkv = Projection(3 * width, self.std, name="qkv", **common)(x_BTC)
        parts = jnp.split(qkv, 3, axis=-1)
        queries_BTHD, keys_BTHD, values_BTHD = (split_heads(part_BTC, self.heads) for part_BTC in parts)
        # The normaliser is the sum of one more channel of the values, which is always 1.
        ones_BTH1 = jnp.ones((*values_BTHD.shape[:-1], 1), values_BTHD.dtype)
        values_BTHE = jnp.concatenate([values_BTHD, ones_BTH1], -1)
        no_decay = jnp.zeros((1, 1, 1, 1))
        sums_BTHE, _ = linear_recurrence(jax.nn.elu(queries_BTHD) + 1, jax.nn.elu(keys_BTHD) + 1, values_BTHE, no_decay)
        answers_BTC = merge_heads(sums_BTHE[..., :-1] / (sums_BTHE[..., -1:] + EPSILON))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(answers_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class LinearTransformer(ZooModel):
    """The transformer with linear attention in place of softmax attention."""

    config: LinearTransformerConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Linear attention."""
        return functools.partial(LinearAttention, heads=self.config.n_head, **self.unit_fields())

    @property
    def max_positions(self) -> int:
        """The number of learned positions."""
        return self.config.context_length
