"""H3 (Fu et al. 2023, "Hungry Hungry Hippos", arXiv 2212.14052): linear attention whose sums are state spaces."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooModel
from mosaics_jax.models.zoo.s4d import DiagonalStateSpace, S4DConfig
from mosaics_jax.nn.layers import Projection, normal
from mosaics_jax.ops.long_convolution import long_convolution
from mosaics_jax.settings import check_sizes, setting
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class H3Config(S4DConfig):
    """The config of `H3`."""

    shift_taps: int = setting(64, "S: number of positions that H3's shift state space remembers")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("shift_taps",))


class ShiftStateSpace(nn.Module):
    """A state space whose state is the queue of the last ``taps`` inputs. (B, T, C) to the same shape.

    x_t = shift(x_{t-1}) + e_1 u_t, y_t = C x_t + D u_t (section 3.1), computed as a convolution. The parameters C
    (``output``) and D (``skip``) are initialised as N(0, 1).
    """

    taps: int

    @nn.compact
    def __call__(self, x_BTC: Array) -> Array:
        """The outputs of a whole sequence."""
        width = x_BTC.shape[-1]
        output_SC = self.param("output", normal(1.0, "taps", "heads"), (self.taps, width))
        skip_C = self.param("skip", normal(1.0, "heads"), (width,))
        return long_convolution(x_BTC, output_SC.at[0].add(skip_C))


class H3Mixer(nn.Module):
    """Q * diagonal(shift(K) * V), then a projection: algorithm 1 with heads of width 1. (B, T, C) to the same shape."""

    pairs: int
    taps: int
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
        queries_BTC, keys_BTC, values_BTC = jnp.split(qkv, 3, axis=-1)
        pairs_BTC = ShiftStateSpace(self.taps, name="shift")(keys_BTC) * values_BTC
        answers_BTC = queries_BTC * DiagonalStateSpace(self.pairs, name="diagonal")(pairs_BTC)
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(answers_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class H3(ZooModel):
    """H3 layers in place of attention, each with a feed-forward layer (section 3).

    Left out: heads wider than 1 (outer products of keys and values), which the authors' default does not have either,
    and the two attention layers of the hybrid models. The diagonal state space is that of S4D.
    """

    config: H3Config

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The H3 mixer."""
        c = self.config
        return functools.partial(H3Mixer, pairs=c.state_pairs, taps=c.shift_taps, **self.unit_fields())
