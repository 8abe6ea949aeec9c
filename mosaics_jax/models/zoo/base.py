"""The base of the compared sequence models: pre-normalised blocks of a mixer over time and a feed-forward layer."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from mosaics_jax.models.gpt2 import STD
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.mosaic import stream
from mosaics_jax.nn.config import ModelConfig
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.layers import layer_norm
from mosaics_jax.nn.short_convolution import Convolved
from mosaics_jax.settings import check_rates, setting
from mosaics_jax.shapes import Array, Dtype


@dataclasses.dataclass(frozen=True)
class ZooConfig(ModelConfig):
    """The fields that all compared models have. The defaults are the published size for RegBench (v1 section 6.3)."""

    vocab_size: int = setting(20, "V: number of tokens in the vocabulary")
    n_layer: int = setting(2, "L: number of blocks")
    n_head: int = setting(8, "H: number of heads (memories, or attention heads, in parallel); divides n_embd")
    n_embd: int = setting(128, "C: width of the model")
    short_convolution: int = setting(0, "taps of a causal convolution, channel by channel, before each mixer (0: none)")
    dropout: float = setting(0.05, "dropout rate of embeddings, attention weights and outputs of units")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self, ("dropout",))
        if self.short_convolution < 0:
            raise ValueError(f"short_convolution={self.short_convolution} must not be negative")


class MixerBlock(nn.Module):
    """x += mixer(LN(x)); x += feed_forward(LN(x)).  (B, T, C) to the same shape.

    make_mixer, make_feed_forward: make units that map (x_BTC, train) to y_BTC. Without ``make_feed_forward``, the block
    has no second unit.
    """

    make_mixer: Callable[..., nn.Module]
    make_feed_forward: Callable[..., nn.Module] | None
    bias: bool
    dtype: Dtype

    def setup(self) -> None:
        self.ln1 = layer_norm(self.bias, self.dtype)
        self.mixer = self.make_mixer()
        if self.make_feed_forward is not None:
            self.ln2 = layer_norm(self.bias, self.dtype)
            self.feed_forward = self.make_feed_forward()

    def __call__(self, x_BTC: Array, train: bool = False) -> Array:
        """The outputs of a whole sequence."""
        x_BTC = stream(x_BTC + self.mixer(self.ln1(x_BTC), train))
        if self.make_feed_forward is None:
            return x_BTC
        return stream(x_BTC + self.feed_forward(self.ln2(x_BTC), train))


class ZooModel(LanguageModel):
    """L blocks of a mixer and a feed-forward layer, between an embedding and a head.

    A subclass defines its mixer: a module that maps (x_BTC, train) to y_BTC, causal in time, with dropout of its
    outputs. These models compute whole sequences; they cannot decode.
    """

    config: Any

    @property
    def can_decode(self) -> bool:
        """False: `extend` is not supported."""
        return False

    def mixer(self, layer: int | None) -> Callable[..., nn.Module]:
        """A function that makes the mixer of block ``layer``; None: of the one module that stands for all blocks."""
        raise NotImplementedError

    def feed_forward(self, layer: int | None) -> Callable[..., nn.Module] | None:
        """A function that makes the second unit, a feed-forward layer of hidden width 4 C. None: no second unit."""
        del layer
        return functools.partial(FeedForward, hidden=4 * self.config.n_embd, **self.unit_fields())

    def unit_fields(self) -> dict[str, Any]:
        """Fields that most units have: standard deviations of projections, bias, dropout rate and dtype."""
        c = self.config
        return {
            "std": STD,
            "output_std": STD / math.sqrt(2 * c.n_layer),
            "bias": c.bias,
            "dropout": c.dropout,
            "dtype": c.computing_dtype,
        }

    @property
    def convolution_taps(self) -> int:
        """Taps of the convolution before each mixer; 0: none."""
        return self.config.short_convolution

    def block(self, layer: int | None) -> nn.Module:
        """A short convolution if the config sets one, the mixer, and the unit after it."""
        c = self.config
        mixer = self.mixer(layer)
        if self.convolution_taps > 0:
            mixer = functools.partial(Convolved, mixer, self.convolution_taps, c.computing_dtype)
        return MixerBlock(mixer, self.feed_forward(layer), c.bias, c.computing_dtype)

    @property
    def embedding_std(self) -> float:
        """The initial standard deviation of the embedding."""
        return STD

    @property
    def head_std(self) -> float:
        """The initial standard deviation of an output matrix that is not the embedding."""
        return STD

    @property
    def embed_dropout(self) -> float:
        """The dropout rate of embeddings: the same rate as everywhere."""
        return self.config.dropout
