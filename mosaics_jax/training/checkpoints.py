"""Checkpoints of a run, and how to get its parameters back.

A work directory holds ``checkpoints/STEP/`` with the items params, optimizer (its state, the step, the random key),
data (the position in the training data) and meta (format version, step, the run's config), and ``best/STEP/`` with the
params, the meta and the metrics of the evaluation whose loss is the least so far. ``files.json`` beside them lists
every file's size and checksum, so that a damaged or half-copied checkpoint is recognised before it is read.
"""

import json
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSeconds, LatestN, PreservationPolicy

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.workdir import find_run
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoint_files import (
    FILE_LIST,
    ITEMS,
    damage,
    damage_seen_by_first_process,
    gist,
    measure,
    report_damage,
    set_aside,
    steps_in,
)
from mosaics_jax.training.state import TrainState

FORMAT = 2
READABLE = (1, 2)  # format 1 kept the position in the data once for each process, and knew no skip_spikes
DIRECTORIES = {"newest": "checkpoints", "best": "best"}
ERRORS = (OSError, ValueError, KeyError, TypeError)  # of libraries, on files that they cannot read


class CheckpointWriter:
    """Saves states in the background, and the parameters of the best evaluation apart from them.

    Kept are the newest ``keep`` states, and one in every ``keep_minutes`` (0: none). Raises UserError where it cannot
    write.
    """

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any], keep: int, keep_minutes: float = 0):
        policies: list[PreservationPolicy] = [LatestN(keep)]
        if keep_minutes:
            policies.append(EveryNSeconds(round(60 * keep_minutes)))
        self._workdir = workdir
        self._config = config
        self._newest = _Series(workdir / DIRECTORIES["newest"], preservation_policy=AnyPreservationPolicy(policies))
        self._best: _Series | None = None
        self._saved = time.monotonic()

    def save(self, state: TrainState, data: Any) -> None:
        """Starts saving; returns once ``state`` may be overwritten. Raises UserError for an earlier save too.

        ``data``: the iterator over the training data; its state is the same in all processes.
        """
        self.wait()
        self.check_room(state)
        self._newest.save(
            int(state.step),
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(_optimizer_item(state)),
            data=ocp.args.JsonSave(_position(data)),
            meta=self._meta(int(state.step)),
        )
        self._saved = time.monotonic()

    def save_best(self, step: int, params: Params, metrics: Mapping[str, float]) -> None:
        """Saves ``params`` likewise if ``metrics`` have a ``loss``, and it is below that of any evaluation before."""
        if "loss" not in metrics:
            return
        self.wait()
        if self._best is None:
            directory = self._workdir / DIRECTORIES["best"]
            spoilt = []
            for path in (directory / str(other) for other in steps_in(directory)):
                if reason := damage_seen_by_first_process(path):
                    report_damage(path, reason)
                    spoilt.append(path)
            if jax.process_index() == 0:
                set_aside(spoilt, self._workdir / "damaged" / "best")
            multihost_utils.sync_global_devices("damaged ones are set aside")
            self._best = _Series(directory, max_to_keep=1, best_fn=lambda found: found["loss"], best_mode="min")
        if metrics["loss"] < self._best.least_loss() and step not in self._best.steps():
            self._best.save(step, dict(metrics), params=ocp.args.StandardSave(params), meta=self._meta(step))

    def minutes_since_save(self) -> float:
        """Since the last save of this process, or since its start."""
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

    def _meta(self, step: int) -> ocp.args.JsonSave:
        return ocp.args.JsonSave({"format": FORMAT, "step": step, "config": self._config})


class _Series:
    """The checkpoints in one directory. Raises UserError where it cannot write."""

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
        except (OSError, ValueError) as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    def least_loss(self) -> float:
        """Of the metrics that were saved here; infinite if there are none."""
        best = self._manager.best_step()
        return float("inf") if best is None else self._manager.metrics(best)["loss"]

    def _failure(self, error: Exception) -> UserError:
        return UserError(
            f"the checkpoint of step {self._step} could not be written in {self.directory}: {gist(error)}; "
            "earlier checkpoints are kept, and the same command goes on from the newest"
        )

    def _list_files(self) -> None:
        """Called by Orbax in the background, when all items are written but the directory lacks its final name."""
        if jax.process_index() == 0:
            (directory,) = self.directory.glob(f"{self._step}.orbax-checkpoint-tmp*")
            (directory / FILE_LIST).write_text(json.dumps(measure(directory), indent=1))


def restore_latest(workdir: pathlib.Path, abstract: TrainState, data: Any, config: dict[str, Any]) -> TrainState | None:
    """The newest good state, placed as ``abstract`` says, or None; ``data`` is moved to its position.

    It may have been saved on another mesh and by another number of processes. A damaged checkpoint is reported in the
    log and moved to ``damaged/``, and the one before it is taken. Nothing is moved before the config has been compared.
    Raises UserError if no checkpoint is good, or if ``config`` differs.
    """
    damaged = []
    checkpoints = workdir / DIRECTORIES["newest"]
    for step in steps_in(checkpoints):
        directory = checkpoints / str(step)
        if reason := damage_seen_by_first_process(directory):
            report_damage(directory, reason)
            damaged.append(directory)
            continue
        check_config(_read_meta(directory)["config"], config)
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
            data.set_state(position)
        except ERRORS as error:
            raise UserError(f"{directory} does not fit this program: {gist(error)}") from error
        return TrainState(params=restored["params"], **restored["optimizer"])
    if damaged:
        raise UserError(f"no checkpoint in {checkpoints} is whole; to start again, use another work directory")
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


def load_params(workdir: str | os.PathLike, which: str = "newest") -> Params:
    """The parameters of a run: a nested dict of arrays on one device, as ``model.apply`` takes them.

    ``workdir``: the run's directory, or one that holds a single run or a run named ``mosaic``. ``which``: ``newest``
    checkpoint, or ``best``, that of the evaluation with the least loss. Damaged checkpoints are passed over and
    reported in the log. Raises UserError if there is none to load.
    """
    directory = epath.Path(_newest_good(workdir, which) / "params")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    reader = ocp.StandardCheckpointHandler()
    try:
        stored = reader.metadata(directory).tree
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), stored)
        return reader.restore(directory, args=ocp.args.StandardRestore(abstract))
    except ERRORS as error:
        raise UserError(f"{directory} cannot be read: {gist(error)}") from error
    finally:
        reader.close()


def load_config(workdir: str | os.PathLike, which: str = "newest") -> dict[str, Any]:
    """The config (``loop.run_config``) of the run whose parameters ``load_params`` loads. Raises UserError likewise."""
    return _read_meta(_newest_good(workdir, which))["config"]


def _newest_good(workdir: str | os.PathLike, which: str) -> pathlib.Path:
    if which not in DIRECTORIES:
        raise ValueError(f"which={which!r} is not one of {', '.join(DIRECTORIES)}")
    checkpoints = find_run(workdir) / DIRECTORIES[which]
    steps = steps_in(checkpoints)
    for step in steps:
        directory = (checkpoints / str(step)).absolute()
        if not (reason := damage(directory)):
            return directory
        report_damage(directory, reason)
    raise UserError(f"{checkpoints} holds no {'whole' if steps else 'finished'} checkpoint")


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "key": state.key}


def _position(data: Any) -> dict[str, Any]:
    """The state of the iterator over the training data, which belongs to no process, so that any number may go on."""
    position = data.get_state()
    if jax.process_count() == 1:
        return position
    checksum = np.uint32(zlib.crc32(json.dumps(position, sort_keys=True).encode()))
    multihost_utils.assert_equal(checksum, "the processes are at different places in their training data")
    return position


def _read_position(directory: pathlib.Path) -> dict[str, Any]:
    """What ``_position`` gave; or, in format 1, what it was in each process, if that is the same."""
    files = [*(directory / "data").glob("metadata"), *(directory / "data").glob("process_*-of-*.json")]
    positions = [json.loads(path.read_text()) for path in files]
    if any(position != positions[0] for position in positions):
        raise UserError(
            f"{directory} has format 1, and its {len(files)} processes were at different places in their training "
            "data: go on with the program that wrote it"
        )
    return positions[0]


def _read_meta(directory: pathlib.Path) -> dict[str, Any]:
    meta = json.loads((directory / "meta" / "metadata").read_text())
    if meta.get("format") not in READABLE:
        raise UserError(
            f"{directory} has format {meta.get('format')}, this program reads up to {FORMAT}: "
            "use the program that wrote it"
        )
    if meta["format"] == 1 and "optimizer" in meta["config"]:
        meta["config"]["optimizer"].setdefault("skip_spikes", 0.0)
    return meta


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
