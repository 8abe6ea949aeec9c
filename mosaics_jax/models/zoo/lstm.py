"""LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), one layer per block.

Shapes here: G channels of all four gates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import Projection, constant
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array, Dtype

GATES = 4  # input, forget, cell, output


@dataclasses.dataclass(frozen=True)
class LSTMConfig(ZooConfig):
    """The config of `LSTM`: no fields of its own."""


class LSTMLayer(nn.Module):
    """c_t = f_t c_{t-1} + i_t g_t and h_t = o_t tanh(c_t), with gates from W x_t + R h_{t-1} + b.

    (B, T, C) to the same shape. Initial values: W ~ N(0, sqrt(2 / 5C)), the standard deviation of Glorot's uniform; R
    orthogonal; b = 1 for the forget gate, 0 for the others. The products with W are computed for all positions at once.
    States are in at least float32.
    """

    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence, from the zero state."""
        batch, _, width = x_BTC.shape
        glorot_std = math.sqrt(2 / (width + GATES * width))
        from_x_BTG = Projection(GATES * width, glorot_std, dtype=self.dtype, name="input")(x_BTC)
        orthogonal: Any = nn.with_logical_partitioning(nn.initializers.orthogonal(), ("embed", "heads"))
        recurrent_CG = self.param("recurrent_kernel", orthogonal, (width, GATES * width))
        bias_G = self.param("bias", constant(np.repeat([0.0, 1.0, 0.0, 0.0], width), "heads"), (GATES * width,))
        wide = accumulation_dtype(x_BTC)
        recurrent_CG = recurrent_CG.astype(wide)

        def step(state: tuple[Array, Array], from_x_BG: Array) -> tuple[tuple[Array, Array], Array]:
            h_BC, c_BC = state
            input_BC, forget_BC, cell_BC, output_BC = jnp.split(from_x_BG + h_BC @ recurrent_CG, GATES, axis=-1)
            c_BC = jax.nn.sigmoid(forget_BC) * c_BC + jax.nn.sigmoid(input_BC) * jnp.tanh(cell_BC)
            h_BC = jax.nn.sigmoid(output_BC) * jnp.tanh(c_BC)
            return (h_BC, c_BC), h_BC

        zero_BC = jnp.zeros((batch, width), wide)
        from_x_TBG = jnp.swapaxes(from_x_BTG.astype(wide) + bias_G.astype(wide), 0, 1)
        _, h_TBC = lax.scan(step, (zero_BC, zero_BC), from_x_TBG)
        y_BTC = jnp.swapaxes(h_TBC, 0, 1).astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class LSTM(ZooModel):
    """The LSTM baseline of RegBench: blocks of one LSTM layer, in place of attention, and a feed-forward layer.

    A block has 16 C^2 parameters, the transformer's 12 C^2. ``n_head`` has no effect. Left out: peephole connections,
    and projections after the LSTM.
    """

    config: LSTMConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """An LSTM layer."""
        return functools.partial(LSTMLayer, dropout=self.config.dropout, dtype=jnp.dtype(self.config.dtype))
