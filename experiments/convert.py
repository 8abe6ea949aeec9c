"""Turns checkpoints of the authors' PyTorch code into run directories, and back.

    python -m experiments.convert --from_torch=ckpt.pt --out=runs/published --tokenizer=gpt2_bpe
    python -m experiments.convert --to_torch=ckpt.pt --checkpoint=runs/demo

The codes are `Library` and `nanoMosaics` (facebookresearch/MemoryMosaics) and nanoGPT's GPT; which one is recognised.
A run directory serves `experiments.generate` (if it was given a tokenizer) and `load_params`; training does not go on
from it. A file named .npz holds the same arrays under the same names, and needs no PyTorch.
"""

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import entry
from mosaics_jax.convert import from_torch, to_torch
from mosaics_jax.data.tokenizers import load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.models import LANGUAGE_MODELS, GPT2Config
from mosaics_jax.runtime import staging
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoints import CheckpointWriter, load_config, load_params
from mosaics_jax.training.state import TrainState, count_parameters

FROM_TORCH = flags.DEFINE_string("from_torch", None, "checkpoint to read: .pt (needs PyTorch) or .npz")
OUT = flags.DEFINE_string("out", None, "run directory to write, with --from_torch")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "a .model file, or a directory with GPT-2's encoder.json and vocab.bpe"
)
TO_TORCH = flags.DEFINE_string("to_torch", None, "checkpoint to write: .pt (needs PyTorch) or .npz")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run directory to read, with --to_torch")
PRE_LN = flags.DEFINE_bool("pre_ln", None, "of a `Library` mosaic, if the checkpoint does not tell: true")
N_HEAD = flags.DEFINE_integer("n_head", None, "heads of a GPT, if the checkpoint does not tell: one for 64 channels")
GELU = flags.DEFINE_enum(
    "gelu",
    None,
    ["erf", "tanh"],
    "of a GPT, if the checkpoint does not tell: erf, as in nanoGPT and `nanoMosaics`; `Library` has tanh",
)


def main(argv: list[str]) -> None:
    if FROM_TORCH.value and OUT.value and not (TO_TORCH.value or CHECKPOINT.value):
        read_theirs(Path(FROM_TORCH.value), Path(OUT.value))
    elif TO_TORCH.value and CHECKPOINT.value and not (FROM_TORCH.value or OUT.value):
        write_theirs(Path(CHECKPOINT.value), Path(TO_TORCH.value))
    else:
        raise UserError("give --from_torch=FILE --out=DIR, or --to_torch=FILE --checkpoint=DIR; see --help")


def read_theirs(path: Path, out: Path) -> None:
    """The checkpoint in ``path`` as the run directory ``out``, which must be new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: give --out a new directory")
    tokenizer = load_tokenizer(TOKENIZER.value) if TOKENIZER.value else None
    checkpoint = load_arrays(path)
    # What names and shapes do not tell may be written beside them.
    told = checkpoint.get("model_args", {})
    pre_ln = told.get("pre_ln", True) if PRE_LN.value is None else PRE_LN.value
    n_head = told.get("n_head") if N_HEAD.value is None else N_HEAD.value
    gelu = GELU.value or told.get("gelu", "erf")
    config, params = from_torch(checkpoint, pre_ln=pre_ln, n_head=n_head, gelu=gelu)
    config = dataclasses.replace(config, skip_tokens=told.get("skip_tokens", 0))
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{TOKENIZER.value} has {tokenizer.vocab_size} tokens, {path} {config.vocab_size}: it is another model's"
        )
    name = "gpt2" if isinstance(config, GPT2Config) else "mosaic"
    task = {"model": name, "model_config": dataclasses.asdict(config)}
    with writing(out), staging.directory(out) as directory:
        save_params(directory, params, {"experiment": f"convert/{name}", "task": task})
        if tokenizer is not None:
            tokenizer.save(directory / "tokenizer")
    print(f"{out}: {name} of {config.n_layer} blocks, {config.n_embd} wide, {count_parameters(params):,} parameters")


def write_theirs(run: Path, path: Path) -> None:
    """The newest parameters of a run as the checkpoint ``path``, which must be new."""
    if path.exists():
        raise UserError(f"{path} already exists: give --to_torch a new file")
    params, config = load_params(run), load_config(run)
    try:
        config = LANGUAGE_MODELS[config["task"]["model"]][0](**config["task"]["model_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} holds no language model that this program knows ({error!r})") from error
    arrays: dict[str, Any] = to_torch(config, params)
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, **arrays)
    else:
        torch = import_torch()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save({"model": tensors, "model_args": dataclasses.asdict(config)}, buffer)
    with writing(path):
        staging.write_file(path, buffer.getvalue())
    print(f"{path}: {len(arrays)} arrays")


def load_arrays(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, its tensors as numpy arrays. Runs none of the code that a .pt file may contain."""
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        torch = import_torch()
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint of arrays: {reason}") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}: a dict of tensors is needed")

    def to_numpy(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: to_numpy(item) for key, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        return (value.float() if value.is_floating_point() else value).numpy()

    # The optimizer's state is as large again, and not needed.
    return {key: to_numpy(value) for key, value in loaded.items() if key != "optimizer"}


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(".pt files need PyTorch, which is not installed: pip install torch, or use .npz") from error
    return torch


def save_params(workdir: Path, params: Params, config: dict[str, Any]) -> None:
    """A checkpoint at step 0 without optimizer or data, from which parameters can be loaded."""
    key = jax.random.key_data(jax.random.key(0))
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state={}, key=key)
    writer = CheckpointWriter(workdir, config, keep=1)
    writer.save(state, iter(grain.MapDataset.range(1).to_iter_dataset()))
    writer.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    entry.run(main)
