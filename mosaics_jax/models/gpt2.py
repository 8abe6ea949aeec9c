"""The transformer that mosaics are measured against: GPT-2 (Radford et al. 2019) in nanoGPT's proportions."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp

from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.nn.attention import CausalSelfAttention
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.rotary import check_rotary
from mosaics_jax.ops import RetrievalForm
from mosaics_jax.settings import check_choices, check_heads, check_rates, check_sizes, setting

STD = 0.02


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """A GPT-2. The defaults are the paper's 12-block baseline: no biases, context 512."""

    vocab_size: int = setting(50304, "V: tokens of the vocabulary")
    n_layer: int = setting(12, "L: blocks")
    n_head: int = setting(12, "H: attention heads; divides n_embd")
    n_embd: int = setting(768, "C: width of the model")
    context_length: int = setting(512, "T: positions that are learned")
    rotary: bool = setting(False, "rotary positions in attention in place of learned ones: no limit on T")
    weight_tying: bool = setting(True, "the head is the embedding")
    bias: bool = setting(False, "biases in projections and normalisation")
    skip_tokens: int = setting(0, "positions at the beginning that give no logits and carry no loss")
    gelu: str = setting("tanh", "GELU of the baseline: tanh as in Library, erf as in nanoMosaics", ("tanh", "erf"))
    dropout: float = setting(0.05, "dropout of the baseline: embeddings, attention weights, outputs of units")
    dtype: str = setting("float32", "type of computation; parameters are float32", ("float32", "bfloat16", "float64"))
    remat: str = setting(
        "none",
        "what backward recomputes: nothing, all but products, all; on CPU it needs scan_layers",
        ("none", "dots", "full"),
    )
    scan_layers: bool = setting(False, "scan over stacked blocks: compile time does not grow with depth")
    retrieval: str = setting("auto", "form of attention", tuple(form.value for form in RetrievalForm))

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "n_layer", "n_head", "n_embd", "context_length"))
        check_heads(self.n_embd, self.n_head)
        if self.rotary:
            check_rotary(self.n_embd, self.n_head)
        check_rates(self, ("dropout",))
        check_choices(self)
        if self.skip_tokens < 0:
            raise ValueError(f"skip_tokens={self.skip_tokens} must not be negative")


class GPT2(LanguageModel):
    """Pre-normalised blocks of causal self-attention and feed-forward layers over learned or rotary positions."""

    config: GPT2Config

    def block_fields(self) -> dict[str, Any]:
        """Blocks of attention and a feed-forward layer of hidden width 4 C."""
        c = self.config
        common: dict[str, Any] = {
            "std": STD,
            "output_std": STD / math.sqrt(2 * c.n_layer),
            "bias": c.bias,
            "dropout": c.dropout,
            "dtype": jnp.dtype(c.dtype),
        }
        attention = functools.partial(
            CausalSelfAttention, heads=c.n_head, rotary=c.rotary, retrieval=RetrievalForm(c.retrieval), **common
        )
        feed_forward = functools.partial(FeedForward, hidden=4 * c.n_embd, tanh_gelu=c.gelu == "tanh", **common)
        return {
            "first": attention,
            "second": feed_forward,
            "first_name": "attention",
            "second_name": "feed_forward",
            "bias": c.bias,
            "dtype": jnp.dtype(c.dtype),
        }

    @property
    def embedding_std(self) -> float:
        """Of the embedding and of the positions."""
        return STD

    @property
    def head_std(self) -> float:
        """Of a head of its own."""
        return STD

    @property
    def embed_dropout(self) -> float:
        """The one dropout rate of the baseline."""
        return self.config.dropout

    @property
    def max_positions(self) -> int | None:
        """Positions that are learned; None if they are rotary."""
        return None if self.config.rotary else self.config.context_length
