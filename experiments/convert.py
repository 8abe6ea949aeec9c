"""Turns checkpoints of the authors' PyTorch code into run directories, and back.

    python -m experiments.convert --from_torch=ckpt.pt --out=runs/published --tokenizer=gpt2_bpe
    python -m experiments.convert --to_torch=ckpt.pt --checkpoint=runs/demo

The codes are `Library` and `nanoMosaics` (facebookresearch/MemoryMosaics) and nanoGPT's GPT; the program recognises
which of them wrote a checkpoint. The run directory can be opened by `experiments.generate` (if --tokenizer is given)
and `open_run`; training cannot resume from it. A file named .npz holds the same arrays under the same names, and needs
no PyTorch.
"""

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import entry
from mosaics_jax.convert import from_torch, to_torch
from mosaics_jax.data.tokenizers import load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.models import GPT2Config, MosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.training import open_run
from mosaics_jax.training.checkpoints import save_params
from mosaics_jax.training.state import count_parameters

FROM_TORCH = flags.DEFINE_string("from_torch", None, "checkpoint to read: .pt (needs PyTorch) or .npz")
OUT = flags.DEFINE_string("out", None, "run directory to write, with --from_torch")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "a .model file, or a directory with GPT-2's encoder.json and vocab.bpe"
)
TO_TORCH = flags.DEFINE_string("to_torch", None, "checkpoint to write: .pt (needs PyTorch) or .npz")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run directory to read, with --to_torch")
PRE_LN = flags.DEFINE_bool(
    "pre_ln", None, "pre_ln of a `Library` mosaic, if the checkpoint does not hold it (default: true)"
)
N_HEAD = flags.DEFINE_integer(
    "n_head", None, "heads of a GPT, if the checkpoint does not hold them (default: one for 64 channels)"
)
GELU = flags.DEFINE_enum(
    "gelu",
    None,
    ["erf", "tanh"],
    "GELU of a GPT, if the checkpoint does not hold it (default: erf, as nanoGPT and `nanoMosaics`; `Library`: tanh)",
)


def main(argv: list[str]) -> None:
    if FROM_TORCH.value and OUT.value and not (TO_TORCH.value or CHECKPOINT.value):
        import_checkpoint(Path(FROM_TORCH.value), Path(OUT.value))
    elif TO_TORCH.value and CHECKPOINT.value and not (FROM_TORCH.value or OUT.value):
        export_checkpoint(Path(CHECKPOINT.value), Path(TO_TORCH.value))
    else:
        raise UserError("give --from_torch=FILE --out=DIR, or --to_torch=FILE --checkpoint=DIR; see --help")


def import_checkpoint(path: Path, out: Path) -> None:
    """Converts the checkpoint ``path`` to the run directory ``out``, which must be new or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists: give --out a new directory")
    tokenizer = load_tokenizer(TOKENIZER.value) if TOKENIZER.value else None
    checkpoint = load_arrays(path)
    # Settings that cannot be inferred from names and shapes.
    settings = checkpoint.get("model_args", {})
    pre_ln = settings.get("pre_ln", True) if PRE_LN.value is None else PRE_LN.value
    n_head = settings.get("n_head") if N_HEAD.value is None else N_HEAD.value
    gelu = GELU.value or settings.get("gelu", "erf")
    config, params = from_torch(checkpoint, pre_ln=pre_ln, n_head=n_head, gelu=gelu)
    config = dataclasses.replace(config, skip_tokens=settings.get("skip_tokens", 0))
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{TOKENIZER.value} has {tokenizer.vocab_size} tokens, {path} {config.vocab_size}: it is another model's"
        )
    name = "gpt2" if isinstance(config, GPT2Config) else "mosaic"
    task = {"model": {"name": name, **dataclasses.asdict(config)}, "data": {}}
    with writing(out), staging.directory(out) as directory:
        save_params(directory, params, {"experiment": f"convert/{name}", "task": task})
        if tokenizer is not None:
            tokenizer.save(directory / "tokenizer")
    print(f"{out}: {name} of {config.n_layer} blocks, {config.n_embd} wide, {count_parameters(params):,} parameters")


def export_checkpoint(run: Path, path: Path) -> None:
    """Converts the newest parameters of a run to the checkpoint ``path``, which must be new."""
    if path.exists():
        raise UserError(f"{path} already exists: give --to_torch a new file")
    opened = open_run(run)
    config = None if opened.model is None else opened.model.config
    if not isinstance(config, MosaicConfig | GPT2Config):
        raise UserError(f"{run} holds no mosaic or GPT: the authors' codes have no such model")
    arrays: dict[str, Any] = to_torch(config, opened.params)
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
    """The content of a checkpoint file, its tensors as numpy arrays. Code that a .pt file may contain is not run."""
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

    # The optimizer's state is large and not needed.
    return {key: to_numpy(value) for key, value in loaded.items() if key != "optimizer"}


def import_torch() -> Any:
    """The module torch. Raises UserError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(".pt files need PyTorch, which is not installed: pip install torch, or use .npz") from error
    return torch


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the file system into UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


if __name__ == "__main__":
    entry.run(main)
