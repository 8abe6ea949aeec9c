"""Gated linear attention (Yang et al. 2024, arXiv 2312.06635): linear attention whose decays depend on the input.

Shapes here: J channels of all keys (C / 2 of them), R rank of the projection to the decays.
"""

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

GATE_RANK = 16  # rank of the projection to the decays
GATE_ROOT = 16  # tau: a decay is the 16th root of a sigmoid, so that initial decays are near 1


@dataclasses.dataclass(frozen=True)
class GLAConfig(ZooConfig):
    """The config of `GLA`: no fields of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd={self.n_embd} is not divisible by 2 n_head={2 * self.n_head}: keys are C/2 wide")


class GatedLinearAttention(nn.Module):
    """(swish(x W_r) * RMSNorm(y)) W_O for y_t = S_t^T q_t, S_t = diag(a_t) S_{t-1} + k_t v_t^T (section 4.4).

    (B, T, C) to the same shape. Decays a_t = sigmoid(x W_1 W_2 + b)^(1/16), one per key channel; W_1 W_2 has rank 16.
    Keys and queries have C/2 channels, values C. RMSNorm normalises each head, with learned scales that all heads
    share. Projections are initialised as the transformer's and b as 0, so that initial decays are about 0.96.
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
        projected = Projection(3 * width, self.std, name="qkvr", **common)(x_BTC)
        queries_BTJ, keys_BTJ, values_BTC, gates_BTC = jnp.split(projected, [width // 2, width, 2 * width], axis=-1)
        narrow_BTR = Projection(GATE_RANK, self.std, ("embed", "head_dim"), dtype=self.dtype, name="decay_in")(x_BTC)
        widen = Projection(width // 2, self.std, ("head_dim", "heads"), bias=True, dtype=self.dtype, name="decay")
        raw_BTJ = widen(narrow_BTR)
        log_decay_BTJ = jax.nn.log_sigmoid(raw_BTJ.astype(accumulation_dtype(raw_BTJ))) / GATE_ROOT
        inputs = (split_heads(a, self.heads) for a in (queries_BTJ, keys_BTJ, values_BTC, log_decay_BTJ))
        answers_BTHD, _ = linear_recurrence(*inputs)
        norm = nn.RMSNorm(EPSILON, scale_init=constant(1.0, "norm"), dtype=self.dtype, name="norm")
        gated_BTC = jax.nn.silu(gates_BTC) * merge_heads(norm(answers_BTHD))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(gated_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class GLA(ZooModel):
    """Gated linear attention, and the transformer's feed-forward layers: without the gate (SwiGLU) of the paper's."""

    config: GLAConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Gated linear attention."""
        return functools.partial(GatedLinearAttention, heads=self.config.n_head, **self.unit_fields())
