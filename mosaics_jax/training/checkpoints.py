"""Checkpoints of a run, and how to get its parameters back.

A work directory holds ``checkpoints/STEP/`` with the items params, optimizer (its state, the step, the random key),
data (the position in the training data) and meta (format version, step, the run's config). ``files.json`` beside them
lists every file's size and checksum, so that a damaged or half-copied checkpoint is recognised before it is read.
"""

import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from mosaics_jax.errors import UserError
from mosaics_jax.shapes import Params
from mosaics_jax.training.state import TrainState
from mosaics_jax.training.workdir import find_run

FORMAT = 1
ITEMS = ("params", "optimizer", "data", "meta")
FILE_LIST = "files.json"


class CheckpointWriter:
    """Saves states in the background, and keeps the newest ``keep``. Raises UserError where it cannot write."""

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any], keep: int):
        self._directory = (workdir / "checkpoints").absolute()
        self._config = config
        self._step = 0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=ITEMS)
        except OSError as error:
            raise UserError(f"cannot write checkpoints in {self._directory}: {error.strerror}") from error

    def save(self, state: TrainState, data: Iterator[Any]) -> None:
        """Starts saving; returns once ``state`` may be overwritten. Raises UserError for an earlier save too."""
        self.wait()
        self._step = int(state.step)
        self.check_room(state)
        meta = {"format": FORMAT, "step": self._step, "config": self._config}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(_optimizer_item(state)),
            data=grain.checkpoint.CheckpointSave(data),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.save(self._step, args=items)
        except (OSError, ValueError) as error:
            raise self._failure(error) from error

    def check_room(self, state: TrainState) -> None:
        """Raises UserError if the disk has no room for one more checkpoint of ``state`` (arrays or shapes)."""
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise UserError(
                f"no room for a checkpoint in {self._directory}: {needed / 1e6:,.1f} MB needed, "
                f"{free / 1e6:,.1f} MB free; make room, then the same command goes on from the newest checkpoint"
            )

    def wait(self) -> None:
        """Returns once everything is on the disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def _failure(self, error: Exception) -> UserError:
        return UserError(
            f"the checkpoint of step {self._step} could not be written in {self._directory}: {_gist(error)}; "
            "earlier checkpoints are kept, and the same command goes on from the newest"
        )

    def _list_files(self) -> None:
        """Called by Orbax in the background, when all items are written but the directory lacks its final name."""
        if jax.process_index() == 0:
            (directory,) = self._directory.glob(f"{self._step}.orbax-checkpoint-tmp*")
            (directory / FILE_LIST).write_text(json.dumps(_measure(directory), indent=1))


def restore_latest(
    workdir: pathlib.Path, abstract: TrainState, data: Iterator[Any], config: dict[str, Any]
) -> TrainState | None:
    """The newest good state, placed as ``abstract`` says, or None; ``data`` is moved to its position.

    A damaged checkpoint is reported in the log and moved to ``damaged/``, and the one before it is taken. Nothing is
    moved before the config has been compared. Raises UserError if no checkpoint is good, or if ``config`` differs.
    """
    damaged = []
    for step in _steps(workdir):
        directory = workdir / "checkpoints" / str(step)
        if reason := _damage_seen_by_first_process(directory):
            _report_damage(directory, reason)
            damaged.append(directory)
            continue
        check_config(_read_meta(directory)["config"], config)
        _check_processes(directory)
        if jax.process_index() == 0:
            _set_aside(damaged, workdir / "damaged")
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(_optimizer_item(abstract)),
            data=grain.checkpoint.CheckpointRestore(data),
        )
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(directory.absolute(), args=args)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{directory} does not fit this program: {_gist(error)}") from error
        return TrainState(params=restored["params"], **restored["optimizer"])
    if damaged:
        raise UserError(
            f"no checkpoint in {workdir / 'checkpoints'} is whole; to start again, use another work directory"
        )
    return None


def check_config(stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises UserError, with the fields that differ, unless a checkpoint's config and this run's are equal."""
    old, new = _flat(stored), _flat(json.loads(json.dumps(current)))

    def show(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "no such field"

    different = [
        f"{name.removeprefix('task.').removeprefix('optimizer.')}: "
        f"checkpoint has {show(old, name)}, this run has {show(new, name)}"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]
    if different:
        raise UserError(
            f"the work directory holds a run of another config ({'; '.join(different)}); choose another work directory"
        )


def load_params(workdir: str | os.PathLike) -> Params:
    """The newest parameters of a run: a nested dict of arrays on one device, as ``model.apply`` takes them.

    ``workdir``: the run's directory, or one that holds a single run or a run named ``mosaic``. Damaged checkpoints are
    passed over and reported in the log. Raises UserError if there is none to load.
    """
    directory = epath.Path(_newest_good(workdir) / "params")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    reader = ocp.StandardCheckpointHandler()
    try:
        stored = reader.metadata(directory).tree
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored)
        return reader.restore(directory, args=ocp.args.StandardRestore(abstract))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory} cannot be read: {_gist(error)}") from error
    finally:
        reader.close()


def load_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config (``loop.run_config``) of the run whose parameters ``load_params`` loads. Raises UserError likewise."""
    return _read_meta(_newest_good(workdir))["config"]


def _newest_good(workdir: str | os.PathLike) -> pathlib.Path:
    run = find_run(workdir)
    steps = _steps(run)
    for step in steps:
        directory = (run / "checkpoints" / str(step)).absolute()
        if not (reason := _damage(directory)):
            return directory
        _report_damage(directory, reason)
    raise UserError(f"{run / 'checkpoints'} holds no {'whole' if steps else 'finished'} checkpoint")


def _steps(workdir: pathlib.Path) -> list[int]:
    """Steps of which there is a directory under its final name, newest first."""
    directory = workdir / "checkpoints"
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "key": state.key}


def _measure(directory: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of the items of a checkpoint."""
    files = sorted(path for item in ITEMS for path in (directory / item).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _damage(directory: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is."""
    try:
        expected = json.loads((directory / FILE_LIST).read_text())
        for name, (size, checksum) in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if _checksum(path) != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{FILE_LIST} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{FILE_LIST}: {_gist(error)}"
    return ""


def _damage_seen_by_first_process(directory: pathlib.Path) -> str:
    """``_damage``, judged by one process for all, so that all restore the same step."""
    if jax.process_count() == 1:
        return _damage(directory)
    reason = _damage(directory) if jax.process_index() == 0 else ""
    damaged = multihost_utils.broadcast_one_to_all(np.int32(bool(reason)))
    return reason or ("found damaged by the first process" if damaged else "")


def _report_damage(directory: pathlib.Path, reason: str) -> None:
    logging.warning("checkpoint %s is damaged (%s): trying the one before it", directory, reason)


def _set_aside(directories: list[pathlib.Path], destination: pathlib.Path) -> None:
    """Makes room for the steps to be saved again, yet destroys nothing that was damaged for the first time."""
    for directory in directories:
        shutil.rmtree(destination / directory.name, ignore_errors=True)
        destination.mkdir(exist_ok=True)
        os.replace(directory, destination / directory.name)


def _read_meta(directory: pathlib.Path) -> dict[str, Any]:
    meta = json.loads((directory / "meta" / "metadata").read_text())
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{directory} has format {meta.get('format')}, this program reads {FORMAT}: use the program that wrote it"
        )
    return meta


def _check_processes(directory: pathlib.Path) -> None:
    saved = len(list((directory / "data").glob("process_*-of-*.json")))
    if saved != jax.process_count():
        raise UserError(
            f"{directory} was saved by {saved} processes, this run has {jax.process_count()}: "
            "the position in the training data is kept for each process, so start as many"
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _gist(error: BaseException) -> str:
    """The end of the first line of a library's error, where TensorStore tells the cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r" \[(os_error_code|source locations).*", "", line)
    return line if len(line) < 200 else f"... {line[-200:]}"
