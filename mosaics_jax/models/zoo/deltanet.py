"""DeltaNet (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484): writes correct the memory."""

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
    """The config of `DeltaNet`: no fields of its own."""


class DeltaAttention(nn.Module):
    """RMSNorm(y) W_O for y_t = S_t^T q_t, S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T (Schlag eq. 24).

    (B, T, C) to the same shape. As in Yang et al., section 3.3: queries and keys are unit(silu(x W)), values x W_v,
    write strengths b = sigmoid(x W_b), one per head. RMSNorm normalises each head, with learned scales that all heads
    share. Projections are initialised as the transformer's, so that initial strengths are near 1/2.
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
        qkv = jnp.split(Projection(3 * width, self.std, name="qkv", **common)(x_BTC), 3, axis=-1)
        queries_BTHD, keys_BTHD, values_BTHD = (split_heads(part_BTC, self.heads) for part_BTC in qkv)
        queries_BTHD, keys_BTHD = unit(jax.nn.silu(queries_BTHD)), unit(jax.nn.silu(keys_BTHD))
        strength_BTH = jax.nn.sigmoid(Projection(self.heads, self.std, ("embed", "head"), name="beta", **common)(x_BTC))
        answers_BTHD, _ = delta_rule(queries_BTHD, keys_BTHD, values_BTHD, strength_BTH)
        norm = nn.RMSNorm(EPSILON, scale_init=constant(1.0, "norm"), dtype=self.dtype, name="norm")
        answers_BTC = merge_heads(norm(answers_BTHD))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(answers_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class DeltaNet(ZooModel):
    """The delta rule and feed-forward layers.

    Differences from the paper's network: queries, keys and values share one short convolution (``short_convolution``),
    and feed-forward layers are the transformer's, without the gate of SwiGLU.
    """

    config: DeltaNetConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The delta rule."""
        return functools.partial(DeltaAttention, heads=self.config.n_head, **self.unit_fields())
