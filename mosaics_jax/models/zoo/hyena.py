"""Hyena (Poli et al. 2023, arXiv 2302.10866): gates, and a long convolution whose filters a small network computes.

Shapes here: E features of a position in the network of the filters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.models.zoo.base import ZooConfig, ZooModel
from mosaics_jax.nn.layers import Projection, constant, normal
from mosaics_jax.nn.short_convolution import ShortConvolution
from mosaics_jax.ops.long_convolution import long_convolution
from mosaics_jax.settings import check_sizes, setting
from mosaics_jax.shapes import Array, Dtype

SHORT_TAPS = 3
HIDDEN_LAYERS = ("first", "second", "third")  # of the filter network
# The window of a channel decays to FLOOR within FASTEST to SLOWEST times the filter length.
FLOOR, FASTEST, SLOWEST = 1e-2, 0.3, 1.5


@dataclasses.dataclass(frozen=True)
class HyenaConfig(ZooConfig):
    """The config of `Hyena`. The defaults of the filter network are RegBench's."""

    filter_length: int = setting(
        512, "positions that Hyena's filter network maps to time 0 .. 1; sequences may be longer"
    )
    filter_hidden: int = setting(64, "hidden width of Hyena's filter network")
    filter_waves: int = setting(
        1, "number of sines and of cosines of time in the input of Hyena's filter network, with 1, 2, .. periods"
    )
    filter_sine: float = setting(10.0, "initial frequency of the sine activations of Hyena's filter network")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("filter_length", "filter_hidden", "filter_waves"))
        if self.filter_sine <= 0:
            raise ValueError(f"filter_sine={self.filter_sine} must be positive")


class ImplicitFilter(nn.Module):
    """Filters h_t = window(t) network(t), (T, C), for any T. Time is t = position / ``length``, whatever T is.

    network (section 3.3): its input is (t, cos 2 pi k t, sin 2 pi k t), k = 1 .. ``waves``; hidden layers are
    sin(frequency * (W x + b)) with learned frequencies; its output has C channels. window: exp(-rate t), with a fixed
    rate per channel, from slow to fast. A learned D ~ N(0, 1) is added to h_0. Kernels are initialised as
    N(0, 1/sqrt(3 fan_in)), as wide as the authors' layers; with 0.02, as in RegBench's model, copying over 25 positions
    is learned much later. Computed in at least float32.
    """

    length: int
    hidden: int
    waves: int
    sine: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, time: int, width: int) -> Array:
        """The first ``time`` taps for ``width`` channels."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)

        def linear(x_TE: Array, name: str, features: int, axis: str) -> Array:
            std = 1 / math.sqrt(3 * x_TE.shape[-1])
            kernel = self.param(f"{name}_kernel", normal(std, None, axis), (x_TE.shape[-1], features))
            return x_TE @ kernel.astype(dtype)

        t_T1 = jnp.arange(time, dtype=dtype)[:, None] / self.length
        phases_TE = 2 * math.pi * t_T1 * (1 + jnp.arange(self.waves))
        x_TE = jnp.concatenate([t_T1, jnp.cos(phases_TE), jnp.sin(phases_TE)], axis=-1)
        for name in HIDDEN_LAYERS:
            x_TE = linear(x_TE, name, self.hidden, "mlp")
            x_TE += self.param(f"{name}_bias", constant(0.0, "mlp"), (self.hidden,)).astype(dtype)
            frequency_E = self.param(f"{name}_frequency", constant(self.sine, "mlp"), (self.hidden,)).astype(dtype)
            x_TE = jnp.sin(frequency_E * x_TE)
        rates_C = -math.log(FLOOR) / jnp.linspace(SLOWEST, FASTEST, width, dtype=dtype)
        filters_TC = jnp.exp(-rates_C * t_T1) * linear(x_TE, "output", width, "heads")
        skip_C = self.param("skip", normal(1.0, "heads"), (width,)).astype(dtype)
        return filters_TC.at[0].add(skip_C)


class HyenaMixer(nn.Module):
    """Q * (h convolved with (K * V)), then a projection. (B, T, C) to the same shape.

    Q, K and V are projections, each followed by a convolution of 3 taps (definition 3.1 and algorithms 1-3, order 2).
    """

    length: int
    hidden: int
    waves: int
    sine: float
    std: float
    output_std: float
    bias: bool = False
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        time, width = x_BTC.shape[1:]
        common = {"bias": self.bias, "dtype": self.dtype}
        qkv = Projection(3 * width, self.std, name="qkv", **common)(x_BTC)
        qkv = ShortConvolution(SHORT_TAPS, "heads", name="short", **common)(qkv)
        queries_BTC, keys_BTC, values_BTC = jnp.split(qkv, 3, axis=-1)
        make_filters = ImplicitFilter(self.length, self.hidden, self.waves, self.sine, self.dtype, name="filter")
        answers_BTC = queries_BTC * long_convolution(keys_BTC * values_BTC, make_filters(time, width))
        y_BTC = Projection(width, self.output_std, ("heads", "embed"), name="proj", **common)(answers_BTC)
        return nn.Dropout(self.dropout, deterministic=not train)(y_BTC)


class Hyena(ZooModel):
    """Hyena operators of order 2 in place of attention, each with a feed-forward layer.

    As in the authors' code, the first of the two filters of definition 3.1 is the short one on V, and windows are
    fixed. Left out: a learning rate of its own for the filter network, and its exemption from weight decay.
    """

    config: HyenaConfig

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """The Hyena operator."""
        c = self.config
        return functools.partial(
            HyenaMixer,
            length=c.filter_length,
            hidden=c.filter_hidden,
            waves=c.filter_waves,
            sine=c.filter_sine,
            **self.unit_fields(),
        )
