"""S4D (Gu, Gupta, Goel & Ré 2022, arXiv 2206.11893): a diagonal state space per channel, then a gated linear unit."""

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
from mosaics_jax.nn.layers import Projection, constant, normal
from mosaics_jax.ops.state_space import DiagonalSystem, diagonal_state_space
from mosaics_jax.settings import check_sizes, setting
from mosaics_jax.shapes import Array, Dtype

SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1  # bounds of the initial step: the time between positions


@dataclasses.dataclass(frozen=True)
class S4DConfig(ZooConfig):
    """The config of `S4D`."""

    state_pairs: int = setting(
        32, "P: number of conjugate pairs of poles of a channel's diagonal state space (S4D, H3)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("state_pairs",))


class DiagonalStateSpace(nn.Module):
    """A state space with P = ``pairs`` conjugate pairs of poles for each channel. (B, T, C) to the same shape.

    Everything is learned. Initial values are those of S4D-Lin: poles -1/2 + i pi p, outputs C ~ complex N(0, 1), skips
    D ~ N(0, 1), steps log-uniform in 0.001 .. 0.1. All parameters are vectors, which weight decay exempts: the paper
    decays neither poles nor steps.
    """

    pairs: int

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]

        def log_uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, minval=math.log(SHORTEST_STEP), maxval=math.log(LONGEST_STEP))

        initial_step: Any = nn.with_logical_partitioning(log_uniform, ("heads",))

        def by_pairs(name: str, init: Callable[..., Array]) -> Array:
            return self.param(name, init, (width * self.pairs,)).reshape(width, self.pairs)

        system = DiagonalSystem(
            log_step_C=self.param("log_step", initial_step, (width,)),
            log_decay_CP=by_pairs("log_decay", constant(math.log(0.5), "heads")),
            frequency_CP=by_pairs("frequency", constant(math.pi * np.tile(np.arange(self.pairs), width), "heads")),
            output_real_CP=by_pairs("output_real", normal(math.sqrt(0.5), "heads")),
            output_imaginary_CP=by_pairs("output_imaginary", normal(math.sqrt(0.5), "heads")),
            skip_C=self.param("skip", normal(1.0, "heads"), (width,)),
        )
        return diagonal_state_space(x_BTC, system)[0]


class S4DMixer(nn.Module):
    """State space, GELU, and a gated linear unit a * sigmoid(b) that mixes channels. (B, T, C) to the same shape."""

    pairs: int
    output_std: float
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]
        y_BTC = DiagonalStateSpace(self.pairs, name="state_space")(x_BTC.astype(self.dtype))
        output = Projection(2 * width, self.output_std, ("heads", "embed"), self.bias, self.dtype, name="output")
        y_BTC = nn.glu(output(jax.nn.gelu(y_BTC)))
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class S4D(ZooModel):
    """S4D layers in place of attention (sections 3 and 4), each with a feed-forward layer.

    ``n_head`` has no effect: every channel has a system of its own. Left out: the other initialisations (Legs, Inv),
    the bilinear discretisation (here: zero-order hold), and the smaller learning rate of poles and steps.
    """

    config: S4DConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The S4D mixer."""
        fields = self.unit_fields()
        del fields["std"]
        return functools.partial(S4DMixer, pairs=self.config.state_pairs, **fields)
