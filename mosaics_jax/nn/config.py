"""The configs of networks: one frozen object that goes whole from the flags down to every unit."""

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
    """The fields that every network has. The defaults are the published 12-block model (v1 section 5)."""

    vocab_size: int = setting(50304, "V: tokens of the vocabulary")
    n_layer: int = setting(12, "L: blocks")
    n_head: int = setting(12, "H: heads (memories, or attention heads, in parallel); divides n_embd")
    n_embd: int = setting(768, "C: width of the model")
    weight_tying: bool = setting(True, "the head is the embedding")
    bias: bool = setting(False, "biases in projections and normalization")
    skip_tokens: int = setting(0, "positions at the beginning that give no logits and carry no loss")
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
        check_choices(self)
        if self.skip_tokens < 0:
            raise ValueError(f"skip_tokens={self.skip_tokens} must not be negative")

    @property
    def head_width(self) -> int:
        """D = C / H."""
        return self.n_embd // self.n_head

    @property
    def computing_dtype(self) -> jnp.dtype:
        """``dtype`` as JAX knows it."""
        return jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class MosaicConfig(ModelConfig):
    """A Memory Mosaic. The defaults are the published 12-block model (v1 section 5)."""

    pmem_size: int = setting(2688, "M: slots of a persistent memory, per head and bank")
    pmem_count: int = setting(1, "K: banks of persistent memory, averaged")
    pre_ln: bool = setting(True, "normalize the input of each unit; False normalizes the stream itself")
    attn_only: bool = setting(False, "contextual memories alone, no second unit in a block")
    feed_forward: bool = setting(False, "a two-layer network of hidden width 4 C in place of persistent memory")
    value_convolution: bool = setting(False, "values from a full width-2 convolution instead of the mixture c (eq. 6)")
    key_taps: int = setting(1, "S: positions that W_phi convolves over, the newest last")
    leaky_average: str = setting(
        "learned",
        "rates of the leaky averages in keys (eq. 6): learned; fixed at their initial values; off: keys from x_t alone",
        LEAKY_AVERAGES,
    )
    normalized_keys: bool = setting(
        True, "keys and queries of one norm (eq. 6); False: of any norm, compared by the Gaussian kernel (eq. 2)"
    )
    asymmetric: bool = setting(False, "contextual queries from an extractor of their own, as in attention, not the key")
    peek: bool = setting(
        True, "values know x_{t+1} (eq. 5); False: values from x_t alone, which queries still find strictly later"
    )
    variant: str = setting("library", "which of the authors' codes to follow to the last digit", ("library", "nano"))
    ic_dropout: float = setting(0.05, "dropout on retrieval weights")
    hd_dropout: float = setting(0.05, "dropout after the output projection W_z of each unit")
    embed_dropout: float = setting(0.0, "dropout on embeddings")
    retrieval: str = setting("auto", "form of retrieval, or of attention", RETRIEVAL_FORMS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("pmem_size", "pmem_count", "key_taps"))
        check_rates(self, ("ic_dropout", "hd_dropout", "embed_dropout"))
        if self.value_convolution and not self.peek:
            raise ValueError("value_convolution=True is a way to peek at x_{t+1}: it goes with peek=True alone")

    @property
    def recipe(self) -> "Recipe":
        """The constants of the variant."""
        return RECIPES[self.variant]


@dataclasses.dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """A GPT-2. The defaults are the paper's 12-block baseline: no biases, context 512."""

    context_length: int = setting(512, "T: positions that are learned")
    rotary: bool = setting(False, "rotary positions in attention in place of learned ones: no limit on T")
    gelu: str = setting("tanh", "GELU of the baseline: tanh as in Library, erf as in nanoMosaics", ("tanh", "erf"))
    dropout: float = setting(0.05, "dropout of the baseline: embeddings, attention weights, outputs of units")
    retrieval: str = setting("auto", "form of retrieval, or of attention", RETRIEVAL_FORMS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, ("context_length",))
        check_rates(self, ("dropout",))
        if self.rotary:
            check_rotary(self.n_embd, self.n_head)


Constant = Callable[[MosaicConfig], float]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the authors' codes do not agree on: bounds, epsilons, factors, and initial standard deviations.

    eps: added to the norm of keys and values. log_scale_bound: the largest logarithm of a key's scale a;
    log_squared_scale_bound: that of a^2, the scale of a query to persistent memory. logit_scale: factor of the logits.
    Standard deviations: projection_std of W_phi and W_psi; output_std of W_z; embedding_std of the embedding; head_std
    of a head that is not the embedding.
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
    # `Library` bounds the logarithm of the scale before the scale is squared, `nanoMosaics` after.
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
