"""Which array of a checkpoint of the authors is which parameter: a table for each code, read in both directions."""

import dataclasses
import math

from mosaics_jax.errors import UserError
from mosaics_jax.models import GPT2Config, MosaicConfig

Path = tuple[str, ...]

# Fields of MosaicConfig that the authors' codes do not have: they must have their default values.
NOT_CONVERTIBLE = ("feed_forward", "leaky_average", "normalized_keys", "asymmetric", "peek")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a checkpoint, ``name`` of shape ``shape``, and the parameter at ``path`` that it corresponds to.

    The parameter is the array reshaped to ``view``, with its axes transposed to ``order`` (defaults: unchanged). With
    ``bank``, the array is that row of the parameter's first axis. Two entries with one path are one array under two
    names.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    view: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    bank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "view", self.view or self.shape)
        object.__setattr__(self, "order", self.order or tuple(range(len(self.view))))
        assert math.prod(self.view) == math.prod(self.shape)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the parameter, or of one bank of it."""
        return tuple(self.view[axis] for axis in self.order)


def entries(config: MosaicConfig | GPT2Config, cuda_keys: bool = False) -> list[Entry]:
    """The table of a model. Raises UserError if the authors' codes have no such model.

    cuda_keys: use the names of ``memory_mosaics_eft.py``, the version of `Library` with a CUDA leaky average.
    """
    if isinstance(config, GPT2Config):
        if config.rotary:
            raise UserError("the authors' GPT has no rotary positions: there is no checkpoint to convert to")
        return _gpt(config)
    if changed := [name for name in NOT_CONVERTIBLE if getattr(config, name) != getattr(MosaicConfig, name)]:
        fields = ", ".join(f"{name}={getattr(config, name)}" for name in changed)
        raise UserError(f"the authors' code has no mosaic with {fields}: there is no checkpoint to convert to")
    if config.variant == "library":
        return _library(config, cuda_keys)
    if config.attn_only or config.value_convolution or config.key_taps > 1 or not config.pre_ln:
        raise UserError(
            "nanoMosaics has no attn_only, value_convolution, key_taps > 1 or pre_ln=False: "
            "there is no checkpoint to convert to"
        )
    return _nano(config)


def _library(c: MosaicConfig, cuda_keys: bool) -> list[Entry]:
    width, heads, slot = c.n_embd, (c.n_head,), (1, c.n_head, c.pmem_size, c.n_embd // c.n_head)

    def key(name: str, path: Path) -> list[Entry]:
        if cuda_keys:
            # Both decays are one parameter, registered under two names.
            decays = [Entry(f"{name}.leaky_average.leaky_beta_{x}_under", heads, (*path, "decay")) for x in "wu"]
            return decays + _linear(f"{name}.leaky_average.linear", (*path, "W_phi"), width, width, c.bias)
        decay = Entry(f"{name}.leaky_key_beta", heads, (*path, "decay"))
        return [decay, *_convolution(f"{name}.k_featurizer.conv", (*path, "W_phi"), width, c.key_taps, c.bias)]

    def value(name: str, path: Path) -> list[Entry]:
        if c.value_convolution:
            return _convolution(f"{name}.conv", (*path, "W_psi"), width, 2, c.bias)
        peek = Entry(f"{name}.coef", heads, (*path, "peek"))
        return [peek, *_linear(f"{name}.linear", (*path, "W_psi"), width, width, c.bias)]

    table = [Entry("emb.weight", (c.vocab_size, width), ("embedding",))]
    for i in range(c.n_layer):
        name, block = f"blocks.{i}", (f"blocks_{i}",)
        unit = (*block, "contextual")
        table += [
            *_norm(f"{name}.ln1", (*block, "ln1"), width, c.bias),
            *key(f"{name}.attn", (*unit, "key")),
            Entry(f"{name}.attn.kernel_beta", heads, (*unit, "key", "bandwidth")),
            Entry(f"{name}.attn.value_beta", heads, (*unit, "value", "gain")),
            *value(f"{name}.attn.v_featurizer", (*unit, "value")),
            *_linear(f"{name}.attn.c_proj", (*unit, "W_z"), width, width, c.bias),
        ]
        if c.attn_only:
            continue
        unit = (*block, "persistent")
        table += [
            *_norm(f"{name}.ln2", (*block, "ln2"), width, c.bias),
            *key(f"{name}.pmem", (*unit, "key")),
            Entry(f"{name}.pmem.kernel_beta", heads, (*unit, "key", "bandwidth")),
            Entry(f"{name}.pmem.value_beta", heads, (*unit, "gain")),
            *_linear(f"{name}.pmem.c_proj", (*unit, "W_z"), width, width, c.bias),
        ]
        for n in range(c.pmem_count):
            table += [Entry(f"{name}.pmem.pmem.M_{x}{n}", slot, (*unit, f"P_{x}"), view=slot[1:], bank=n) for x in "kv"]
    return [*table, *_norm("ln_out", ("ln_out",), width, c.bias), _head("head", c)]


def _nano(c: MosaicConfig) -> list[Entry]:
    width, banks = c.n_embd, (c.pmem_count, c.n_head, c.pmem_size, c.n_embd // c.n_head)

    def scalars(name: str, path: Path) -> Entry:
        return Entry(name, (1, c.n_head, 1, 1), path, view=(c.n_head,))

    def key(name: str, path: Path) -> list[Entry]:
        return [
            scalars(f"{name}.key_scale", (*path, "bandwidth")),
            *_linear(f"{name}.W_k", (*path, "W_phi"), width, width, c.bias),
            scalars(f"{name}.leaky_avg.leaky_key_beta", (*path, "decay")),
        ]

    table = [Entry("mosaic.wte.weight", (c.vocab_size, width), ("embedding",))]
    for i in range(c.n_layer):
        name, block = f"mosaic.h.{i}", (f"blocks_{i}",)
        value, unit = (*block, "contextual", "value"), (*block, "persistent")
        table += [
            *_norm(f"{name}.ln_1", (*block, "ln1"), width, c.bias),
            *key(f"{name}.attn.k_featurizer", (*block, "contextual", "key")),
            scalars(f"{name}.attn.v_featurizer.coef", (*value, "peek")),
            scalars(f"{name}.attn.v_featurizer.val_scale", (*value, "gain")),
            *_linear(f"{name}.attn.v_featurizer.W_v", (*value, "W_psi"), width, width, c.bias),
            *_linear(f"{name}.attn.c_proj", (*block, "contextual", "W_z"), width, width, c.bias),
            *_norm(f"{name}.ln_2", (*block, "ln2"), width, c.bias),
            *(Entry(f"{name}.mlp.P_{x}", (banks[0], 1, *banks[1:]), (*unit, f"P_{x}"), view=banks) for x in "kv"),
            scalars(f"{name}.mlp.out_scale", (*unit, "gain")),
            *key(f"{name}.mlp.k_featurizer", (*unit, "key")),
            *_linear(f"{name}.mlp.c_proj", (*unit, "W_z"), width, width, c.bias),
        ]
    return [*table, *_norm("mosaic.ln_f", ("ln_out",), width, c.bias), _head("lm_head", c)]


def _gpt(c: GPT2Config) -> list[Entry]:
    width = c.n_embd
    table = [
        Entry("transformer.wte.weight", (c.vocab_size, width), ("embedding",)),
        Entry("transformer.wpe.weight", (c.context_length, width), ("positions",)),
    ]
    for i in range(c.n_layer):
        name, block = f"transformer.h.{i}", (f"blocks_{i}",)
        attention, qkv = (*block, "attention"), f"{name}.attn.c_attn"
        table += [
            *_norm(f"{name}.ln_1", (*block, "ln1"), width, c.bias),
            Entry(f"{qkv}.weight", (3 * width, width), (*attention, "qkv_kernel"), (3, width, width), (2, 0, 1)),
            *([Entry(f"{qkv}.bias", (3 * width,), (*attention, "qkv_bias"))] if c.bias else []),
            *_linear(f"{name}.attn.c_proj", (*attention, "proj"), width, width, c.bias),
            *_norm(f"{name}.ln_2", (*block, "ln2"), width, c.bias),
            *_linear(f"{name}.mlp.c_fc", (*block, "feed_forward", "up"), width, 4 * width, c.bias),
            *_linear(f"{name}.mlp.c_proj", (*block, "feed_forward", "down"), 4 * width, width, c.bias),
        ]
    return [*table, *_norm("transformer.ln_f", ("ln_out",), width, c.bias), _head("lm_head", c)]


def _norm(name: str, path: Path, width: int, bias: bool) -> list[Entry]:
    scale = Entry(f"{name}.weight", (width,), (*path, "scale"))
    return [scale, Entry(f"{name}.bias", (width,), (*path, "bias"))] if bias else [scale]


def _linear(name: str, path: Path, inputs: int, outputs: int, bias: bool) -> list[Entry]:
    kernel = Entry(f"{name}.weight", (outputs, inputs), (*path, "kernel"), order=(1, 0))
    return [kernel, Entry(f"{name}.bias", (outputs,), (*path, "bias"))] if bias else [kernel]


def _convolution(name: str, path: Path, width: int, taps: int, bias: bool) -> list[Entry]:
    """A convolution: (out, in, taps) becomes (taps, in, out), or (in, out) for one tap."""
    shape = (width, width, taps)
    if taps == 1:
        kernel = Entry(f"{name}.weight", shape, (*path, "kernel"), view=shape[:2], order=(1, 0))
    else:
        kernel = Entry(f"{name}.weight", shape, (*path, "kernel"), order=(2, 1, 0))
    return [kernel, Entry(f"{name}.bias", (width,), (*path, "bias"))] if bias else [kernel]


def _head(name: str, c: MosaicConfig | GPT2Config) -> Entry:
    return Entry(f"{name}.weight", (c.vocab_size, c.n_embd), ("embedding",) if c.weight_tying else ("head",))
