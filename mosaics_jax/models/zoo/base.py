"""What the compared sequence models share: pre-normalised blocks of a mixer over time and a feed-forward layer."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mosaics_jax.models.gpt2 import STD
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.short_convolution import Convolved
from mosaics_jax.settings import check_choices, check_heads, check_rates, check_sizes, setting


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """The fields that every compared model has. The defaults are RegBench's published size (v1 section 6.3)."""

    vocab_size: int = setting(20, "V: tokens of the vocabulary")
    n_layer: int = setting(2, "L: blocks")
    n_head: int = setting(8, "H: heads; divides n_embd")
    n_embd: int = setting(128, "C: width of the model")
    short_convolution: int = setting(0, "taps of a causal convolution, channel by channel, before a mixer (0: none)")
    weight_tying: bool = setting(True, "the head is the embedding")
    bias: bool = setting(False, "biases in projections and normalisation")
    skip_tokens: int = setting(0, "positions at the beginning that give no logits and carry no loss")
    dropout: float = setting(0.05, "dropout of the baseline: embeddings, attention weights, outputs of units")
    dtype: str = setting("float32", "type of computation; parameters are float32", ("float32", "bfloat16", "float64"))
    remat: str = setting(
        "none",
        "what backward recomputes: nothing, all but products, all; on CPU it needs scan_layers",
        ("none", "dots", "full"),
    )
    scan_layers: bool = setting(False, "scan over stacked blocks: compile time does not grow with depth")

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "n_layer", "n_head", "n_embd"))
        check_heads(self.n_embd, self.n_head)
        check_rates(self, ("dropout",))
        check_choices(self)
        for name in ("short_convolution", "skip_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


class ZooModel(LanguageModel):
    """x += mixer(LN(x)); x += feed_forward(LN(x)), L times, between a tied embedding and head.

    A subclass names its mixer: a module with the call (x_BTC, state, span, train) -> (y_BTC, None), causal in time and
    with dropout on its output. These models are trained and evaluated over whole sequences; ``extend`` is not offered.
    """

    config: Any

    def mixer(self) -> Callable[..., nn.Module]:
        """Makes the mixer of a block."""
        raise NotImplementedError

    def feed_forward(self) -> Callable[..., nn.Module] | None:
        """Makes what follows the mixer in a block: two layers of hidden width 4 C; None where the paper has nothing."""
        return functools.partial(FeedForward, hidden=4 * self.config.n_embd, **self.unit_fields())

    def unit_fields(self) -> dict[str, Any]:
        """The fields that all units of a block take: standard deviations of their projections, dropout, type."""
        c = self.config
        return {
            "std": STD,
            "output_std": STD / math.sqrt(2 * c.n_layer),
            "bias": c.bias,
            "dropout": c.dropout,
            "dtype": jnp.dtype(c.dtype),
        }

    @property
    def convolution_taps(self) -> int:
        """Taps of the convolution before a mixer; 0 for a mixer that has one of its own."""
        return self.config.short_convolution

    def block_fields(self) -> dict[str, Any]:
        """Blocks of the mixer, behind a short convolution if the config asks for one, and what follows it."""
        mixer = self.mixer()
        if self.convolution_taps > 0:
            mixer = functools.partial(Convolved, mixer, self.convolution_taps, jnp.dtype(self.config.dtype))
        return {
            "first": mixer,
            "second": self.feed_forward(),
            "first_name": "mixer",
            "second_name": "feed_forward",
            "bias": self.config.bias,
            "dtype": jnp.dtype(self.config.dtype),
        }

    @property
    def embedding_std(self) -> float:
        """Of the embedding."""
        return STD

    @property
    def head_std(self) -> float:
        """Of a head of its own."""
        return STD

    @property
    def embed_dropout(self) -> float:
        """The one dropout rate of these models."""
        return self.config.dropout
