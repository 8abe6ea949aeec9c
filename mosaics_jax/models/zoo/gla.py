"""Gated linear attention (Yang et al. 2024, arXiv 2312.06635): linear attention that chooses what each key forgets."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import EPSILON, Projection, constant, merge_heads, split_heads
from mosaics_jax.ops.linear_recurrence import linear_recurrence
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array, Dtype

GATE_RANK = 16  # of the projection that gives the decays
GATE_ROOT = 16  # tau: decays are this root of a sigmoid, and so begin near 1


@dataclasses.dataclass(frozen=True)
class GLAConfig(ZooConfig):
    """No fields of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} is not divisible by 2 n_head={2 * self.n_head}: keys are C/2 wide")


class GatedLinearAttention(nn.Module):
    """(swish(x W_r) * RMSNorm(y)) W_O for y_t = S_t^T q_t, S_t = diag(a_t) S_{t-1} + k_t v_t^T (section 4.4).

    (B, T, C) to the same. Decays a_t = sigmoid(x W_1 W_2 + b)^(1/16), one a key channel, through rank 16. Keys and
    queries have width C/2, values C. Each head is normalised by itself, over learned scales that heads share.
    Projections begin as the transformer's, b at 0, where a = 0.96.
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
        projected = Projection(3 * width, self.std, name="qkvr", **common)(x_BTC)
        queries, keys, values, gates = jnp.split(projected, [width // 2, width, 2 * width], axis=-1)
        narrow = Projection(GATE_RANK, self.std, ("embed", "head_dim"), dtype=self.dtype, name="decay_in")(x_BTC)
        widen = Projection(width // 2, self.std, ("head_dim", "heads"), bias=True, dtype=self.dtype, name="decay")
        decay = widen(narrow)
        log_decay = jax.nn.log_sigmoid(decay.astype(accumulation_dtype(decay))) / GATE_ROOT
        queries, keys, values, log_decay = (split_heads(a, self.heads) for a in (queries, keys, values, log_decay))
        answers, _ = linear_recurrence(queries, keys, values, log_decay)
        norm = nn.RMSNorm(EPSILON, scale_init=constant(1.0, "norm"), dtype=self.dtype, name="norm")
        gated_BTC = jax.nn.silu(gates) * merge_heads(norm(answers))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(gated_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class GLA(ZooModel):
    """Gated linear attention and feed-forward layers; the paper's have a gate (SwiGLU), these are the transformer's."""

    config: GLAConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Gated linear attention."""
        return functools.partial(GatedLinearAttention, heads=self.config.n_head, **self.unit_fields())
