"""The configs of networks. One frozen config object is passed from the flags down to every unit.

The help text of a field is the help text of its flag. `mosaics_jax/shapes.py` explains letters such as V, H and T.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp

from mosaics_jax.nn.rotary import check_rotary
from mosaics_jax.ops import RetrievalForm
from mosaics_jax.settings import check_choices, check_heads, check_rates, check_sizes, setting

LEAKY_AVERAGES = ("learned", "fixed", "off")
RETRIEVAL_FORMS = tuple(form.value for form in RetrievalForm)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The fields that all networks have. The defaults are those of the published 12-block model (v1 section 5)."""

    vocab_size: int = setting(50304, "V: number of tokens in the vocabulary")
    n_layer: int = setting(12, "L: number of blocks")
    n_head: int = setting(12, "H: number of heads (memories, or attention heads, in parallel); divides n_embd")
    n_embd: int = setting(768, "C: width of the model")
    weight_tying: bool = setting(True, "use the embedding matrix as output matrix")
    bias: bool = setting(False, "add biases to projections and layer normalization")
    skip_tokens: int = setting(0, "number of positions at the beginning that get no logits and no loss")
    dtype: str = setting(
        "float32", "type of activations and products; parameters are float32", ("float32", "bfloat16", "float64")
    )
    remat: str = setting(
        "none",
        "what the backward pass recomputes; none; dots: all but products; full: all (on CPU only with scan_layers)",
        ("none", "dots", "full"),
    )
    scan_layers: bool = setting(
        False, "compile one block and scan over the stacked parameters of all: compile time does not grow with n_layer"
    )

    def __post_init__(self) -> None:
        check_sizes(self, ("vocab_size", "n_layer", "n_head", "n_embd"))
        check_heads(self.n_embd, self.n_head)
        check_choices(self)
        if self.skip_tokens < 0:
            raise ValueError(f"skip_tokens={self.skip_tokens} must not be negative")

    @property
    def head_width(self) -> int:
        """D = C / H."""
        return self.n_embd // self.n_head

    @property
    def computing_dtype(self) -> jnp.dtype:
        """``dtype`` as a JAX dtype."""
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class MosaicConfig(ModelConfig):
    """The config of a Memory Mosaic. The defaults are those of the published 12-block model (v1 section 5)."""

    pmem_size: int = setting(2688, "M: number of slots of a persistent memory, per head and bank")
    pmem_count: int = setting(1, "K: number of banks of persistent memory, whose answers are averaged")
    pre_ln: bool = setting(True, "normalize the input of each unit; if False, normalize the residual stream itself")
    attn_only: bool = setting(False, "blocks of a contextual memory only, without a second unit")
    feed_forward: bool = setting(False, "replace persistent memory by a two-layer network of hidden width 4 C")
    value_convolution: bool = setting(
        False, "compute values by a full convolution of width 2 instead of the mixture c (eq. 6)"
    )
    key_taps: int = setting(1, "S: number of positions that the convolution W_phi covers, up to the current one")
    leaky_average: str = setting(
        "learned",
        "decay rates of the leaky averages in keys (eq. 6); learned; fixed: at initial values; off: keys from x_t only",
        LEAKY_AVERAGES,
    )
    normalized_keys: bool = setting(
        True,
        "normalize keys and queries (eq. 6); if False, compare unnormalized ones by the Gaussian kernel (eq. 2)",
    )
    asymmetric: bool = setting(
        False, "compute contextual queries by an extractor of their own, as in attention; if False, a query is the key"
    )
    peek: bool = setting(
        True,
        "compute value t from x_t and x_{t+1} (eq. 5); if False, from x_t only; queries still see earlier pairs only",
    )
    variant: str = setting(
        "library", "which of the authors' two codes to reproduce: Library or nanoMosaics", ("library", "nano")
    )
    ic_dropout: float = setting(0.05, "dropout rate of retrieval weights")
    hd_dropout: float = setting(0.05, "dropout rate after the output projection W_z of each unit")
    embed_dropout: float = setting(0.0, "dropout rate of embeddings")
    retrieval: str = setting(
        "auto", "how retrieval or attention is computed; all choices give the same results", RETRIEVAL_FORMS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("pmem_size", "pmem_count", "key_taps"))
        check_rates(self, ("ic_dropout", "hd_dropout", "embed_dropout"))
        if self.value_convolution and not self.peek:
            raise ValueError("value_convolution=True computes values from x_t and x_{t+1}: it needs peek=True")

    @property
    def recipe(self) -> "Recipe":
        """The constants of ``variant``."""
        return RECIPES[self.variant]


@dataclasses.dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The config of a GPT-2. The defaults are those of the paper's 12-block baseline: no biases, context length 512."""

    context_length: int = setting(512, "T: number of learned positions")
    rotary: bool = setting(False, "use rotary positions in attention instead of learned ones: no limit on T")
    gelu: str = setting(
        "tanh", "GELU of the baseline: tanh approximation as in Library, exact (erf) as in nanoMosaics", ("tanh", "erf")
    )
    dropout: float = setting(0.05, "dropout rate of embeddings, attention weights and outputs of units")
    retrieval: str = setting(
        "auto", "how retrieval or attention is computed; all choices give the same results", RETRIEVAL_FORMS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("context_length",))
        check_rates(self, ("dropout",))
        if self.rotary:
            check_rotary(self.n_embd, self.n_head)


Constant = Callable[[MosaicConfig], float]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The constants in which the authors' two codes differ: bounds, epsilons, factors and initial standard deviations.

    eps: added to the norm of keys and values. log_scale_bound: upper bound of log a, where a is the scale of keys.
    log_squared_scale_bound: upper bound of log a^2, where a^2 is the scale of queries to persistent memory.
    logit_scale: factor of the logits. Initial standard deviations: projection_std of W_phi and W_psi; output_std of
    W_z; embedding_std of the embedding; head_std of an output matrix that is not the embedding.
    """

    eps: float
    log_scale_bound: float
    log_squared_scale_bound: float
    logit_scale: Constant
    projection_std: Constant
    output_std: Constant
    embedding_std: Constant
    head_std: Constant


RECIPES = {
    # For a^2, `Library` bounds log a and then doubles it; `nanoMosaics` bounds log a^2.
    "library": Recipe(
        eps=0.0,
        log_scale_bound=5.0,
        log_squared_scale_bound=10.0,
        logit_scale=lambda c: c.n_embd**-0.5,
        projection_std=lambda c: c.n_embd**-0.5,
        output_std=lambda c: (c.n_embd * c.n_layer) ** -0.5,
        embedding_std=lambda c: c.n_embd**-0.5 if c.weight_tying else 1.0,
        head_std=lambda c: c.n_embd**-0.5,
    ),
    "nano": Recipe(
        eps=1e-10,
        log_scale_bound=math.log(65535.0),
        log_squared_scale_bound=math.log(65535.0),
        logit_scale=lambda c: 1.0,
        projection_std=lambda c: 0.02,
        output_std=lambda c: 0.02 / math.sqrt(2 * c.n_layer),
        embedding_std=lambda c: 0.02,
        head_std=lambda c: 0.02,
    ),
}
