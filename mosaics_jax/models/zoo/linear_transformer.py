"""Linear transformer (Katharopoulos et al. 2020, arXiv 2006.16236): attention by a feature map, not softmax."""

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
    """Positions are learned, as in the transformer."""

    context_length: int = setting(512, "T: positions that are learned")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("context_length",))


class LinearAttention(nn.Module):
    """y_t = (sum_{s<=t} phi(q_t).phi(k_s) v_s) / (sum_{s<=t} phi(q_t).phi(k_s)), phi(x) = elu(x) + 1 (eq. 7, 9-12).

    (B, T, C) to the same. Projections of queries, keys, values and output begin as the transformer's.
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
        # The normaliser is one more channel of the values, whose value is always 1.
        ones = jnp.ones((*values.shape[:-1], 1), values.dtype)
        sums, _ = linear_recurrence(
            jax.nn.elu(queries) + 1, jax.nn.elu(keys) + 1, jnp.concatenate([values, ones], -1), jnp.zeros((1, 1, 1, 1))
        )
        answers = sums[..., :-1] / (sums[..., -1:] + EPSILON)
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(merge_heads(answers))
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class LinearTransformer(ZooModel):
    """Linear attention and feed-forward layers over learned positions: the transformer with another attention."""

    config: LinearTransformerConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Linear attention."""
        return functools.partial(LinearAttention, heads=self.config.n_head, **self.unit_fields())

    @property
    def max_positions(self) -> int:
        """Positions are learned."""
        return self.config.context_length
