"""Parameters from a state dict of the authors' codes and back, bit for bit."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.convert.names import Entry, entries
from mosaics_jax.errors import UserError
from mosaics_jax.models import GPT2Config, MosaicConfig, unstack_layers
from mosaics_jax.shapes import Params

Arrays = dict[str, np.ndarray]

WRAPPERS = ("_orig_mod.", "module.")  # prefixes of torch.compile and DistributedDataParallel
BUFFERS = (".attn.bias", ".leaky_avg.coef")  # masks and ages, which are not parameters
MAX_NAMES = 3  # names in an error message; the others are counted


def from_torch(
    state_dict: Mapping[str, Any], *, pre_ln: bool = True, n_head: int | None = None, gelu: str = "erf"
) -> tuple[MosaicConfig | GPT2Config, Params]:
    """The config and the parameters (nested dict of float32 numpy arrays, layers not stacked) of a PyTorch checkpoint.

    state_dict: arrays by name, or a dict that holds them as ``model``. The names show which code made them: the
    authors' `Library` (both versions), `nanoMosaics`, or nanoGPT's GPT. Names and shapes determine the config, except
    for ``pre_ln`` (`Library`), ``n_head`` (GPT; default: heads 64 wide), ``gelu`` (GPT: "tanh" in `Library`, "erf" in
    nanoGPT and `nanoMosaics`), skip_tokens and dropout rates. Raises UserError with the names of arrays that are
    missing, unknown or of another shape.
    """
    arrays = _parameters(state_dict)
    cuda_keys = "blocks.0.attn.leaky_average.linear.weight" in arrays
    try:
        if "emb.weight" in arrays:
            config: MosaicConfig | GPT2Config = _library_config(arrays, pre_ln, cuda_keys)
        elif "mosaic.wte.weight" in arrays:
            config = _nano_config(arrays)
        elif "transformer.wte.weight" in arrays:
            config = _gpt_config(arrays, n_head, gelu)
        else:
            raise UserError(
                "no checkpoint of Library (emb.weight), nanoMosaics (mosaic.wte.weight) or nanoGPT "
                f"(transformer.wte.weight): it holds {_few(arrays)}"
            )
    except ValueError as error:
        raise UserError(f"the checkpoint's shapes make no model: {error}") from error
    table = entries(config, cuda_keys)
    problems = _differences(
        {name: array.shape for name, array in arrays.items()}, {entry.name: entry.shape for entry in table}
    )
    if problems:
        raise UserError(f"the checkpoint does not fit the model that its names describe: {problems}")
    return config, _nest(table, arrays)


def to_torch(config: MosaicConfig | GPT2Config, params: Params) -> Arrays:
    """The state dict from which `from_torch` makes ``config`` and ``params``: float32 numpy arrays by name.

    A tied matrix appears under both of its names. ``params`` may have stacked layers. Names of `Library` are those of
    its regular version. Raises UserError if the authors' codes have no such model, or if the parameters do not fit the
    config.
    """
    if "blocks" in params:
        params = unstack_layers(params)
    leaves = {tuple(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    table = entries(config)
    shapes = {}
    for entry in table:
        shapes[entry.path] = entry.target_shape if entry.bank is None else (entry.bank + 1, *entry.target_shape)
    problems = _differences(
        {"/".join(path): leaf.shape for path, leaf in leaves.items()},
        {"/".join(path): shape for path, shape in shapes.items()},
    )
    if problems:
        raise UserError(f"the parameters do not fit the config: {problems}")
    arrays = {}
    for entry in table:
        leaf = leaves[entry.path].astype(np.float32)
        leaf = leaf if entry.bank is None else leaf[entry.bank]
        arrays[entry.name] = np.ascontiguousarray(leaf.transpose(np.argsort(entry.order)).reshape(entry.shape))
    return arrays


def _parameters(state_dict: Mapping[str, Any]) -> Arrays:
    """The arrays of a checkpoint as float32, without buffers, under names without WRAPPERS."""
    inner = state_dict.get("model")
    if isinstance(inner, Mapping):
        state_dict = inner
    arrays = {}
    for key, value in state_dict.items():
        name = re.sub(f"^({'|'.join(map(re.escape, WRAPPERS))})+", "", key)
        if name.endswith(BUFFERS):
            continue
        array = np.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f"{name} of the checkpoint is of type {array.dtype}: an array of floating-point numbers is needed"
            )
        arrays[name] = array.astype(np.float32)
    return arrays


def _nest(table: list[Entry], arrays: Arrays) -> Params:
    """The parameters as a nested dict of copies."""
    parts: dict[tuple[str, ...], list[Entry]] = {}
    for entry in table:
        parts.setdefault(entry.path, []).append(entry)
    params: Params = {}
    for path, same in parts.items():
        values = [arrays[entry.name].reshape(entry.view).transpose(entry.order) for entry in same]
        if same[0].bank is not None:
            value = np.stack(values)
        else:
            for entry, other in zip(same[1:], values[1:], strict=True):
                if not _identical(values[0], other):
                    raise UserError(f"{same[0].name} and {entry.name} differ: one parameter cannot hold both")
            value = np.array(values[0], order="C")
        node = params
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return params


def _library_config(arrays: Arrays, pre_ln: bool, cuda_keys: bool) -> MosaicConfig:
    vocab_size, n_embd = _shape(arrays, "emb.weight", 2)
    attn_only = "blocks.0.ln2.weight" not in arrays
    value_convolution = "blocks.0.attn.v_featurizer.conv.weight" in arrays
    sizes: dict[str, Any] = {}
    if not attn_only:
        sizes = {
            "pmem_size": _shape(arrays, "blocks.0.pmem.pmem.M_k0", 4)[2],
            "pmem_count": sum(name.startswith("blocks.0.pmem.pmem.M_k") for name in arrays),
        }
    return MosaicConfig(
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_layer=_depth(arrays, r"blocks\.(\d+)\."),
        n_head=_shape(arrays, "blocks.0.attn.kernel_beta", 1)[0],
        pre_ln=pre_ln,
        attn_only=attn_only,
        weight_tying=_tied(arrays, "emb.weight", "head.weight"),
        bias="ln_out.bias" in arrays,
        value_convolution=value_convolution,
        key_taps=1 if cuda_keys else _shape(arrays, "blocks.0.attn.k_featurizer.conv.weight", 3)[2],
        **sizes,
    )


def _nano_config(arrays: Arrays) -> MosaicConfig:
    vocab_size, n_embd = _shape(arrays, "mosaic.wte.weight", 2)
    pmem_count, _, n_head, pmem_size, _ = _shape(arrays, "mosaic.h.0.mlp.P_k", 5)
    return MosaicConfig(
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_layer=_depth(arrays, r"mosaic\.h\.(\d+)\."),
        n_head=n_head,
        pmem_size=pmem_size,
        pmem_count=pmem_count,
        weight_tying=_tied(arrays, "mosaic.wte.weight", "lm_head.weight"),
        bias="mosaic.ln_f.bias" in arrays,
        variant="nano",
    )


def _gpt_config(arrays: Arrays, n_head: int | None, gelu: str) -> GPT2Config:
    vocab_size, n_embd = _shape(arrays, "transformer.wte.weight", 2)
    if n_head is None:
        if n_embd % 64:
            raise UserError(
                f"a GPT's checkpoint does not hold n_head, and width {n_embd} is no multiple of 64: give n_head"
            )
        n_head = n_embd // 64
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=n_embd,
        n_layer=_depth(arrays, r"transformer\.h\.(\d+)\."),
        n_head=n_head,
        context_length=_shape(arrays, "transformer.wpe.weight", 2)[0],
        weight_tying=_tied(arrays, "transformer.wte.weight", "lm_head.weight"),
        bias="transformer.ln_f.bias" in arrays,
        gelu=gelu,
    )


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"the checkpoint lacks {name}")
    if arrays[name].ndim != rank:
        raise UserError(f"{name} of the checkpoint has shape {arrays[name].shape}: {rank} dimensions are needed")
    return arrays[name].shape


def _depth(arrays: Arrays, pattern: str) -> int:
    return len({match[1] for name in arrays if (match := re.match(pattern, name))})


def _tied(arrays: Arrays, embedding: str, head: str) -> bool:
    return head in arrays and _identical(arrays[embedding], arrays[head])


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal bit for bit, NaN included."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def _differences(shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    """The names that are missing, unknown or of another shape than expected, as a text; empty if there are none."""
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    parts = (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
    return "; ".join(f"{what}: {_few(names)}" for what, names in parts if names)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - MAX_NAMES
    return (", ".join(names[:MAX_NAMES]) or "nothing") + (f" and {rest} more" if rest > 0 else "")
