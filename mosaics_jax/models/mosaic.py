"""The GPT-2-like Memory Mosaic (Zhang et al., ICLR 2025, arXiv 2405.06394, figure 6)."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp

from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.nn.contextual import ContextualMemory
from mosaics_jax.nn.extractors import LEAKY_AVERAGES
from mosaics_jax.nn.feed_forward import FeedForward
from mosaics_jax.nn.persistent import PersistentMemory
from mosaics_jax.ops import RetrievalForm
from mosaics_jax.settings import check_choices, check_heads, check_rates, check_sizes, setting

NANO_STD = 0.02
NANO_LOG_BOUND = math.log(65535.0)


@dataclasses.dataclass(frozen=True)
class MosaicConfig:
    """A Memory Mosaic. The defaults are the published 12-block model (v1 section 5)."""

    vocab_size: int = setting(50304, "V: tokens of the vocabulary")
    n_layer: int = setting(12, "L: blocks")
    n_head: int = setting(12, "H: memory units in parallel; divides n_embd")
    n_embd: int = setting(768, "C: width of the model")
    pmem_size: int = setting(2688, "M: slots of a persistent memory, per head and bank")
    pmem_count: int = setting(1, "banks of persistent memory, averaged")
    pre_ln: bool = setting(True, "normalise the input of each unit; False normalises the stream itself")
    attn_only: bool = setting(False, "contextual memories alone, no second unit in a block")
    feed_forward: bool = setting(False, "a two-layer network of hidden width 4 C in place of persistent memory")
    weight_tying: bool = setting(True, "the head is the embedding")
    bias: bool = setting(False, "biases in projections and normalisation")
    value_convolution: bool = setting(False, "values from a full width-2 convolution instead of the mixture c (eq. 6)")
    key_taps: int = setting(1, "positions that W_phi convolves over, the newest last")
    leaky_average: str = setting(
        "learned",
        "rates of the leaky averages in keys (eq. 6): learned, fixed where learning begins; off: keys from x_t alone",
        LEAKY_AVERAGES,
    )
    normalized_keys: bool = setting(
        True, "keys and queries of one norm (eq. 6); False: of any, compared by the Gaussian kernel (eq. 2)"
    )
    asymmetric: bool = setting(False, "contextual queries from an extractor of their own, as in attention, not the key")
    peek: bool = setting(
        True, "values know x_{t+1} (eq. 5); False: made from x_t alone, and found strictly later still"
    )
    skip_tokens: int = setting(0, "positions at the beginning that give no logits and carry no loss")
    variant: str = setting("library", "which of the authors' codes to follow to the last digit", ("library", "nano"))
    ic_dropout: float = setting(0.05, "dropout on retrieval weights")
    hd_dropout: float = setting(0.05, "dropout after the output projection W_z of each unit")
    embed_dropout: float = setting(0.0, "dropout on embeddings")
    dtype: str = setting("float32", "type of computation; parameters are float32", ("float32", "bfloat16", "float64"))
    remat: str = setting(
        "none",
        "what backward recomputes: nothing, all but products, all; on CPU it needs scan_layers",
        ("none", "dots", "full"),
    )
    scan_layers: bool = setting(False, "scan over stacked blocks: compile time does not grow with depth")
    retrieval: str = setting("auto", "form of retrieval", tuple(form.value for form in RetrievalForm))

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "n_layer", "n_head", "n_embd", "pmem_size", "pmem_count", "key_taps"))
        check_heads(self.n_embd, self.n_head)
        check_rates(self, ("ic_dropout", "hd_dropout", "embed_dropout"))
        check_choices(self)
        if self.skip_tokens < 0:
            raise ValueError(f"skip_tokens={self.skip_tokens} must not be negative")
        if self.value_convolution and not self.peek:
            raise ValueError("value_convolution=True is a way to peek at x_{t+1}: it goes with peek=True alone")


class MemoryMosaic(LanguageModel):
    """Blocks of contextual and persistent memories; no position encoding, so no limit on T.

    ``MemoryMosaic(config).apply({"params": params}, tokens)`` gives logits; in the `library` variant they are
    scaled by 1/sqrt(C).
    """

    config: MosaicConfig

    def block_fields(self) -> dict[str, Any]:
        """Blocks of one contextual memory and one persistent memory (or feed-forward layer, or nothing) a head."""
        c = self.config
        nano, dtype = c.variant == "nano", jnp.dtype(c.dtype)
        std = NANO_STD if nano else c.n_embd**-0.5
        output_std = NANO_STD / math.sqrt(2 * c.n_layer) if nano else (c.n_embd * c.n_layer) ** -0.5
        memory: dict[str, Any] = {
            "heads": c.n_head,
            "std": std,
            "output_std": output_std,
            "eps": 1e-10 if nano else 0.0,
            "key_taps": c.key_taps,
            "leaky_average": c.leaky_average,
            "normalized_keys": c.normalized_keys,
            "bias": c.bias,
            "retrieval": RetrievalForm(c.retrieval),
            "weight_dropout": c.ic_dropout,
            "output_dropout": c.hd_dropout,
            "dtype": dtype,
        }
        # `Library` bounds the logarithm of the scale at 5 before it is squared for the query of persistent memory,
        # `nanoMosaics` at ln 65535 after.
        contextual_bound, persistent_bound = (NANO_LOG_BOUND, NANO_LOG_BOUND) if nano else (5.0, 10.0)
        first = functools.partial(
            ContextualMemory,
            log_bound=contextual_bound,
            value_convolution=c.value_convolution,
            asymmetric=c.asymmetric,
            peek=c.peek,
            **memory,
        )
        second_name = "feed_forward" if c.feed_forward else "persistent"
        if c.feed_forward:
            second: Any = functools.partial(
                FeedForward, 4 * c.n_embd, std, output_std, bias=c.bias, dropout=c.hd_dropout, dtype=dtype
            )
        else:
            second = functools.partial(
                PersistentMemory, slots=c.pmem_size, banks=c.pmem_count, log_bound=persistent_bound, **memory
            )
        return {
            "first": first,
            "second": None if c.attn_only else second,
            "first_name": "contextual",
            "second_name": second_name,
            "pre_ln": c.pre_ln,
            "bias": c.bias,
            "dtype": dtype,
        }

    @property
    def embedding_std(self) -> float:
        """N(0, 1/sqrt(C)) where it is the head too; N(0, 1) where it is not."""
        if self.config.variant == "nano":
            return NANO_STD
        return self.config.n_embd**-0.5 if self.config.weight_tying else 1.0

    @property
    def head_std(self) -> float:
        """Of a head of its own."""
        return NANO_STD if self.config.variant == "nano" else self.config.n_embd**-0.5

    @property
    def logit_scale(self) -> float:
        """1/sqrt(C) in `Library`."""
        return 1.0 if self.config.variant == "nano" else self.config.n_embd**-0.5

    @property
    def embed_dropout(self) -> float:
        """Dropout on embeddings, which only `nanoMosaics` has."""
        return self.config.embed_dropout
