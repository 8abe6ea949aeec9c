"""Mamba (Gu & Dao 2023, arXiv 2312.00752): a gated state space whose step, input and output depend on the input."""

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

EXPANSION = 2  # inner width, in units of C
RANK_DIVISOR = 16  # the projection to the steps has rank C / 16
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # of the initial steps delta


@dataclasses.dataclass(frozen=True)
class MambaConfig(ZooConfig):
    """Its own fields: the size of the state, and the convolution inside the mixer."""

    mamba_states: int = setting(16, "N: states of an inner channel of Mamba")
    mamba_convolution: int = setting(4, "taps of the convolution inside Mamba, before its selective scan (0: none)")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("mamba_states",))
        if self.mamba_convolution < 0:
            raise ValueError(f"mamba_convolution={self.mamba_convolution} must not be negative")


class SelectiveStateSpace(nn.Module):
    """SSM(A, B, C)(x) + D x with delta = softplus(W_up W_down x + b), B = W_B x, C = W_C x (algorithm 2).

    (B, T, C) to the same, C here the inner width. W_down has width ``rank``. Begins as S4D-Real, A_n = -(n + 1); D = 1;
    b so that delta is log-uniform in 0.001 .. 0.1 (section 3.6); projections as in
    `MambaMixer`. The parameter of A is log(-A), a vector, so that weight decay passes it over as in the authors' code.
    """

    states: int
    rank: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        """The whole sequence."""
        width = x_BTC.shape[-1]

        def softplus_inverse_of_log_uniform(key: Array, shape: tuple[int, ...]) -> Array:
            step = jnp.exp(
                jax.random.uniform(key, shape, minval=math.log(SHORTEST_STEP), maxval=math.log(LONGEST_STEP))
            )
            return step + jnp.log(-jnp.expm1(-step))

        step_bias: Any = nn.with_logical_partitioning(softplus_inverse_of_log_uniform, ("heads",))
        log_rates = constant(np.tile(np.log(np.arange(1, self.states + 1)), width), "heads")
        log_rate_CN = self.param("log_rate", log_rates, (width * self.states,)).reshape(width, self.states)
        skip_C = self.param("skip", constant(1.0, "heads"), (width,))

        select = Projection(
            self.rank + 2 * self.states, torch_std(width), ("heads", "head_dim"), dtype=self.dtype, name="select"
        )
        step = Projection(width, torch_std(self.rank), ("head_dim", "heads"), dtype=self.dtype, name="step")
        low_BTR, input_BTN, output_BTN = jnp.split(select(x_BTC), (self.rank, self.rank + self.states), axis=-1)
        raw_BTC = step(low_BTR).astype(accumulation_dtype(x_BTC)) + self.param("step_bias", step_bias, (width,))
        y_BTC, _ = selective_scan(x_BTC, jax.nn.softplus(raw_BTC), -jnp.exp(log_rate_CN.T), input_BTN, output_BTN)
        return y_BTC + skip_C.astype(x_BTC.dtype) * x_BTC


class MambaMixer(nn.Module):
    """W_o (SSM(SiLU(convolution(W_x u))) * SiLU(W_z u)), twice as wide inside (figure 3). (B, T, C) to the same.

    The convolution has ``taps`` taps and a bias; with 0 taps it is left out. Projections begin N(0, 1/sqrt(3 fan_in)),
    the standard deviation of the authors' uniform ones; W_o divided by the root of the number of blocks.
    """

    states: int
    taps: int
    depth: int
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The whole sequence."""
        width, dtype = x_BTC.shape[-1], self.dtype
        inner = EXPANSION * width
        both = Projection(2 * inner, torch_std(width), bias=self.bias, dtype=dtype, name="in")(x_BTC)
        h_BTC, gate_BTC = jnp.split(both, 2, axis=-1)
        if self.taps > 0:
            h_BTC = ShortConvolution(self.taps, "heads", bias=True, dtype=dtype, name="conv")(h_BTC)
        space = SelectiveStateSpace(self.states, math.ceil(width / RANK_DIVISOR), dtype, name="state_space")
        h_BTC = space(jax.nn.silu(h_BTC)) * jax.nn.silu(gate_BTC)
        output_std = torch_std(inner) / math.sqrt(self.depth)
        y_BTC = Projection(width, output_std, ("heads", "embed"), self.bias, dtype, name="out")(h_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class Mamba(ZooModel):
    """Mamba blocks alone: x += mixer(LN(x)), with no feed-forward layer (figure 3; section 3.4).

    A block has about 6 C^2 parameters where a transformer's attention and feed-forward layer have 12 C^2, so that
    ``n_layer`` of twice the transformer's makes networks of one size. Left out: RMSNorm (here: layer normalisation) and
    the residual stream in float32. A head has no meaning here.
    """

    config: MambaConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """Selective state spaces between gated projections."""
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
        """The mixer is the whole block."""
        return None


def torch_std(fan_in: int) -> float:
    """Standard deviation of U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what the authors' linear layers begin with."""
    return (3 * fan_in) ** -0.5
