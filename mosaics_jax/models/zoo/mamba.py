"""Mamba (Gu & Dao 2023, arXiv 2312.00752): a gated state space whose step, input and output depend on the input.

Shapes here: R rank of the projection to the steps, Z states of a channel.
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

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import Projection, constant
from mosaics_jax.nn.short_convolution import ShortConvolution
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.selective_scan import selective_scan
from mosaics_jax.settings import check_sizes, setting
from mosaics_jax.shapes import Array, Dtype

EXPANSION = 2  # inner channels per channel of the model
RANK_DIVISOR = 16  # the projection to the steps has rank C / 16
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # bounds of the initial step delta


@dataclasses.dataclass(frozen=True)
class MambaConfig(ZooConfig):
    """The config of `Mamba`."""

    mamba_states: int = setting(16, "number of states of an inner channel of Mamba")
    mamba_convolution: int = setting(4, "taps of the convolution inside Mamba, before its selective scan (0: none)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("mamba_states",))
        if self.mamba_convolution < 0:
            raise ValueError(f"mamba_convolution={self.mamba_convolution} must not be negative")


class SelectiveStateSpace(nn.Module):
    """SSM(A, B, C)(x) + D x with delta = softplus(W_up W_down x + b), B = W_B x, C = W_C x (algorithm 2).

    (B, T, C) to the same shape, where C is the inner width. W_down x has R = ``rank`` channels. Initial values
    (section 3.6): A_z = -(z + 1), as S4D-Real; D = 1; b such that delta is log-uniform in 0.001 .. 0.1; projections as
    in `MambaMixer`. The parameter of A is the vector log(-A): weight decay exempts vectors, and the authors' code does
    not decay A.
    """

    states: int
    rank: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]

        def softplus_inverse_of_log_uniform(key: Array, shape: tuple[int, ...]) -> Array:
            step = jnp.exp(
                jax.random.uniform(key, shape, minval=math.log(SHORTEST_STEP), maxval=math.log(LONGEST_STEP))
            )
            return step + jnp.log(-jnp.expm1(-step))

        step_bias: Any = nn.with_logical_partitioning(softplus_inverse_of_log_uniform, ("heads",))
        log_rates = constant(np.tile(np.log(np.arange(1, self.states + 1)), width), "heads")
        log_rate_CZ = self.param("log_rate", log_rates, (width * self.states,)).reshape(width, self.states)
        skip_C = self.param("skip", constant(1.0, "heads"), (width,))

        select = Projection(
            self.rank + 2 * self.states, torch_std(width), ("heads", "head_dim"), dtype=self.dtype, name="select"
        )
        step = Projection(width, torch_std(self.rank), ("head_dim", "heads"), dtype=self.dtype, name="step")
        low_BTR, input_BTZ, output_BTZ = jnp.split(select(x_BTC), (self.rank, self.rank + self.states), axis=-1)
        raw_BTC = step(low_BTR).astype(accumulation_dtype(x_BTC)) + self.param("step_bias", step_bias, (width,))
        y_BTC, _ = selective_scan(x_BTC, jax.nn.softplus(raw_BTC), -jnp.exp(log_rate_CZ.T), input_BTZ, output_BTZ)
        return y_BTC + skip_C.astype(x_BTC.dtype) * x_BTC


class MambaMixer(nn.Module):
    """W_o (SSM(SiLU(convolution(W_x u))) * SiLU(W_z u)) with 2 C inner channels (figure 3).

    (B, T, C) to the same shape. The convolution has ``taps`` taps and a bias; with 0 taps it is left out.
    Projections are initialised as N(0, 1/sqrt(3 fan_in)), the standard deviation of the authors' uniform values; W_o is
    divided by the square root of the number of blocks.
    """

    states: int
    taps: int
    depth: int
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        width, dtype = x_BTC.shape[-1], self.dtype
        inner = EXPANSION * width
        h_and_gate = Projection(2 * inner, torch_std(width), bias=self.bias, dtype=dtype, name="in")(x_BTC)
        h_BTC, gate_BTC = jnp.split(h_and_gate, 2, axis=-1)
        if self.taps > 0:
            h_BTC = ShortConvolution(self.taps, "heads", bias=True, dtype=dtype, name="conv")(h_BTC)
        space = SelectiveStateSpace(self.states, math.ceil(width / RANK_DIVISOR), dtype, name="state_space")
        h_BTC = space(jax.nn.silu(h_BTC)) * jax.nn.silu(gate_BTC)
        output_std = torch_std(inner) / math.sqrt(self.depth)
        y_BTC = Projection(width, output_std, ("heads", "embed"), self.bias, dtype, name="out")(h_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class Mamba(ZooModel):
    """Blocks x += mixer(LN(x)), without feed-forward layers (figure 3, section 3.4).

    A block has about 6 C^2 parameters, half of a transformer's block: with twice the transformer's ``n_layer``, Mamba
    has its size. ``n_head`` has no effect. Left out: RMSNorm (here: layer normalisation) and the residual stream in
    float32.
    """

    config: MambaConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The Mamba mixer."""
        c = self.config
        return functools.partial(
            MambaMixer,
            states=c.mamba_states,
            taps=c.mamba_convolution,
            depth=c.n_layer,
            bias=c.bias,
            dropout=c.dropout,
            dtype=jnp.dtype(c.dtype),
        )

    def feed_forward(self, layer: int | None) -> None:
        """None: the block has no second unit."""
        return None


def torch_std(fan_in: int) -> float:
    """The standard deviation of U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as the authors initialise linear layers."""
    return (3 * fan_in) ** -0.5
