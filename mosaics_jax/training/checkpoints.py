"""Checkpoints of a run: written in the background, restored by the training loop, and their parameters loaded.

A work directory holds ``checkpoints/STEP/`` with the items params, optimizer (its state, the step, the random key),
data (the position in the training data) and meta (format version, step, the run's config), and ``best/STEP/`` with the
params, the meta and the metrics of the evaluation with the least loss so far. ``files.json`` beside the items lists
every file's size and checksum, so that a damaged or half-copied checkpoint is recognised.
"""

import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSeconds, LatestN, PreservationPolicy

from mosaics_jax.errors import UserError
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoint_files import (
    FILE_LIST,
    ITEMS,
    cause,
    damage,
    damage_seen_by_any_process,
    measure,
    report_damage,
    set_aside,
    steps_in,
)
from mosaics_jax.training.run_config import Config, check_config, meta_of, read_meta, write_config
from mosaics_jax.training.state import TrainState

DIRECTORIES = {"newest": "checkpoints", "best": "best"}
# What Orbax raises where a checkpoint cannot be read or written, or does not fit: ValueError is TensorStore's error for
# all of these, and Orbax's own for a tree of another structure.
ORBAX_ERRORS = (OSError, ValueError)


class DataIterator(Iterator[Any], Protocol):
    """An iterator over the training data, as Grain's datasets make them, whose position can be saved and restored."""

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class CheckpointWriter:
    """Saves states in the background, and the parameters of the best evaluation in a directory of their own.

    Kept are the newest ``keep`` states, and of older ones one in every ``keep_minutes`` (0: none). Raises UserError if
    a checkpoint cannot be written.
    """

    def __init__(self, workdir: pathlib.Path, config: Config, keep: int, keep_minutes: float = 0):
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if keep_minutes:
            policies.append(EveryNSeconds(round(60 * keep_minutes)))
        self._workdir = workdir
        self._config = config
        self._newest = _Series(workdir / DIRECTORIES["newest"], preservation_policy=AnyPreservationPolicy(policies))
        self._best: _Series | None = None
        self._saved = time.monotonic()

    def save(self, state: TrainState, data: DataIterator) -> None:
        """Starts to save ``state`` and the position of ``data``, which must be the same in all processes.

        Returns once the arrays of ``state`` may be donated. Raises UserError, also if the save before has failed.
        """
        self.wait()
        self.check_room(state)
        self._newest.save(
            int(state.step),
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(_optimizer_item(state)),
            data=ocp.args.JsonSave(_position(data)),
            meta=ocp.args.JsonSave(meta_of(int(state.step), self._config)),
        )
        self._saved = time.monotonic()

    def save_best(self, step: int, params: Params, metrics: Mapping[str, float]) -> None:
        """Starts to save ``params`` if ``metrics`` have a ``loss`` less than that of every evaluation before."""
        if "loss" not in metrics:
            return
        self.wait()
        if self._best is None:
            self._best = self._open_best()
        if metrics["loss"] < self._best.least_loss() and step not in self._best.steps():
            meta = ocp.args.JsonSave(meta_of(step, self._config))
            self._best.save(step, dict(metrics), params=ocp.args.StandardSave(params), meta=meta)

    def _open_best(self) -> "_Series":
        """The best checkpoints so far; those that are damaged are moved away, since their losses no longer count."""
        directory = self._workdir / DIRECTORIES["best"]
        damaged = []
        for path in (directory / str(step) for step in steps_in(directory)):
            if reason := damage_seen_by_any_process(path):
                report_damage(path, reason)
                damaged.append(path)
        if jax.process_index() == 0:
            set_aside(damaged, self._workdir / "damaged" / "best")
        multihost_utils.sync_global_devices("damaged checkpoints are moved")
        return _Series(directory, max_to_keep=1, best_fn=lambda metrics: metrics["loss"], best_mode="min")

    def minutes_since_save(self) -> float:
        """Minutes since the last save of this process, or since its start."""
        return (time.monotonic() - self._saved) / 60

    def check_room(self, state: TrainState) -> None:
        """Raises UserError if the disk has no room for one more checkpoint of ``state`` (arrays or shapes)."""
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._newest.directory).free
        if free < needed:
            raise UserError(
                f"no room for a checkpoint in {self._newest.directory}: {needed / 1e6:,.1f} MB needed, "
                f"{free / 1e6:,.1f} MB free; make room, then the same command goes on from the newest checkpoint"
            )

    def wait(self) -> None:
        """Returns once everything is on the disk."""
        for series in filter(None, (self._newest, self._best)):
            series.wait()

    def close(self) -> None:
        self.wait()
        for series in filter(None, (self._newest, self._best)):
            series.close()


def save_params(run: pathlib.Path, params: Params, config: Config) -> None:
    """Makes ``run`` the directory of a run with one checkpoint, at step 0, of ``params`` alone, and with its config.

    Parameters can be loaded from it, but no training can resume from it. Raises UserError if it cannot be written.
    """
    checkpoints = _Series(run / DIRECTORIES["newest"], max_to_keep=1)
    params = jax.tree.map(jax.numpy.asarray, params)
    checkpoints.save(0, params=ocp.args.StandardSave(params), meta=ocp.args.JsonSave(meta_of(0, config)))
    checkpoints.wait()
    checkpoints.close()
    write_config(run, config)


class _Series:
    """The checkpoints in one directory. Raises UserError if they cannot be written."""

    def __init__(self, directory: pathlib.Path, **options: Any):
        self.directory = directory.absolute()
        self._step = 0
        options["async_options"] = ocp.AsyncOptions(post_finalization_callback=self._list_files)
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, **options),
                item_names=ITEMS,
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints in {self.directory}: {error.strerror}") from error

    def save(self, step: int, metrics: dict[str, float] | None = None, **items: Any) -> None:
        self._step = step
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)
        except ORBAX_ERRORS as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except ORBAX_ERRORS as error:
            raise self._failure(error) from error

    def close(self) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def least_loss(self) -> float:
        """The least loss in the metrics that were saved here; infinite if there are none."""
        best = self._manager.best_step()
        return float("inf") if best is None else self._manager.metrics(best)["loss"]

    def _failure(self, error: Exception) -> UserError:
        return UserError(
            f"the checkpoint of step {self._step} could not be written in {self.directory}: {cause(error)}; "
            "earlier checkpoints are kept, and the same command goes on from the newest"
        )

    def _list_files(self) -> None:
        """Writes ``files.json``. Orbax calls it, in a thread, before it gives the directory its final name."""
        if jax.process_index() == 0:
            (directory,) = self.directory.glob(f"{self._step}.orbax-checkpoint-tmp*")
            (directory / FILE_LIST).write_text(json.dumps(measure(directory), indent=1))


def restore_latest(
    workdir: pathlib.Path, abstract: TrainState, data: DataIterator, config: Config
) -> TrainState | None:
    """Restores the newest whole checkpoint: the state, sharded as ``abstract``, and the position of ``data``.

    Returns None if there is no checkpoint. The mesh and the number of processes may differ from those that saved it. A
    damaged checkpoint is reported in the log and moved to ``damaged/``, and the one before it is restored; nothing is
    moved before the config has been compared. Raises UserError if no checkpoint is whole, or if ``config`` differs.
    """
    damaged = []
    checkpoints = workdir / DIRECTORIES["newest"]
    for step in steps_in(checkpoints):
        directory = checkpoints / str(step)
        if reason := damage_seen_by_any_process(directory):
            report_damage(directory, reason)
            damaged.append(directory)
            continue
        check_config(read_meta(directory)["config"], config)
        position = _read_position(directory)
        if jax.process_index() == 0:
            set_aside(damaged, workdir / "damaged")
        args = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract.params),
            optimizer=ocp.args.StandardRestore(_optimizer_item(abstract)),
        )
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(directory.absolute(), args=args)
        except ORBAX_ERRORS as error:
            raise UserError(f"{directory} does not fit this program: {cause(error)}") from error
        data.set_state(position)
        return TrainState(params=restored["params"], **restored["optimizer"])
    if damaged:
        raise UserError(f"no checkpoint in {checkpoints} is whole; to start again, use another work directory")
    return None


def newest_whole(
    run: pathlib.Path, which: str, items: Collection[str] = ITEMS, all_processes: bool = False
) -> pathlib.Path:
    """The directory of the newest whole checkpoint of a run; damaged ones are passed over and reported in the log.

    ``which``: a key of DIRECTORIES. ``items``: those to verify by checksum; of the others only the sizes of files are
    compared. With ``all_processes`` the processes share the reading and agree on the result; all must call this.
    Raises UserError if there is no such checkpoint.
    """
    checkpoints = run / DIRECTORIES[which]
    steps = steps_in(checkpoints)
    for step in steps:
        directory = (checkpoints / str(step)).absolute()
        reason = (damage_seen_by_any_process if all_processes else damage)(directory, items)
        if not reason:
            return directory
        report_damage(directory, reason)
    raise UserError(f"{checkpoints} holds no {'whole' if steps else 'finished'} checkpoint")


def params_shapes(checkpoint: pathlib.Path) -> Params:
    """Shapes and types of the parameters in a checkpoint, from its metadata. Raises UserError if it cannot be read."""
    return _read_params(checkpoint, lambda reader, path: reader.metadata(path).tree)


def restore_params(checkpoint: pathlib.Path, abstract: Params) -> Params:
    """The parameters in a checkpoint, sharded as ``abstract`` says. Raises UserError if they cannot be read."""
    return _read_params(checkpoint, lambda reader, path: reader.restore(path, args=ocp.args.StandardRestore(abstract)))


def _read_params(
    checkpoint: pathlib.Path, read: Callable[[ocp.StandardCheckpointHandler, epath.Path], Params]
) -> Params:
    reader = ocp.StandardCheckpointHandler()
    try:
        return read(reader, epath.Path(checkpoint / "params"))
    except ORBAX_ERRORS as error:
        raise UserError(f"{checkpoint / 'params'} cannot be read: {cause(error)}") from error
    finally:
        reader.close()


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "key": state.key}


def _position(data: DataIterator) -> dict[str, Any]:
    """The position of the training data. It is the same in all processes, so that any number of them can resume."""
    position = data.get_state()
    if jax.process_count() == 1:
        return position
    checksum = np.uint32(zlib.crc32(json.dumps(position, sort_keys=True).encode()))
    multihost_utils.assert_equal(checksum, "the processes are at different places in their training data")
    return position


def _read_position(directory: pathlib.Path) -> dict[str, Any]:
    """The position that `_position` gave. Format 1 has one for each process; they must be equal."""
    files = [*(directory / "data").glob("metadata"), *(directory / "data").glob("process_*-of-*.json")]
    positions = [json.loads(path.read_text()) for path in files]
    if any(position != positions[0] for position in positions):
        raise UserError(
            f"{directory} has format 1, and its {len(files)} processes were at different places in their training "
            "data: go on with the program that wrote it"
        )
    return positions[0]
