"""The one training loop: build, restore, step."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.stopping import SAVE, Diverged, Interrupted, StopSignals
from mosaics_jax.runtime.workdir import check_workdir, locked
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoints import CheckpointWriter, DataIterator, restore_latest
from mosaics_jax.training.mesh import make_mesh, put_batch
from mosaics_jax.training.metrics import FILE_NAME, RECORD_FIELDS, MetricsWriter, read_metrics
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import Progress, say
from mosaics_jax.training.run_config import Config, write_config
from mosaics_jax.training.state import Task, TrainState, all_finite, count_parameters, make_trainer, parameter_table

LOSS_WINDOW = 100  # a run's training loss is the mean over so many steps at its end
VISIBLE_SECONDS = 60  # a network file system may cache for so long that a directory does not exist


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a run is, and what it does between steps."""

    steps: int = setting(1500, "updates to make")
    eval_every: int = setting(500, "steps between evaluations (0: only at the end)")
    sample_every: int = setting(500, "steps between samples (0: only at the end)")
    checkpoint_every: int = setting(500, "steps between checkpoints (0: only at the end)")
    log_every: int = setting(50, "steps between progress lines and TensorBoard points")
    checkpoint_every_minutes: float = setting(0.0, "minutes without a checkpoint after which there is one (0: never)")
    keep_checkpoints: int = setting(2, "checkpoints to keep, the newest")
    keep_every_minutes: float = setting(0.0, "of older ones, keep the first and one in so many minutes (0: none)")
    seed: int = setting(0, "seed of initialisation and dropout")
    mesh: str = setting(
        "data:-1", "devices by axis: data, fsdp, tensor, sequence; -1 is the rest; e.g. fsdp:4,tensor:-1"
    )
    profile_start: int = setting(10, "first step to profile")
    profile_steps: int = setting(0, "steps to profile, into WORKDIR/profile (0: none)")

    def __post_init__(self) -> None:
        least = {"steps": 1, "log_every": 1, "keep_checkpoints": 1, "profile_start": 1}
        for field in dataclasses.fields(self):
            if field.name != "mesh" and getattr(self, field.name) < least.get(field.name, 0):
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)} must be at least {least.get(field.name, 0)}"
                )


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a finished run; it does not depend on how often the run was interrupted.

    train_loss: mean over the last min(100, steps) steps, in the units of the task's loss. eval_metrics: those of the
    evaluation after the last step. seconds: time spent in steps, without compilation, evaluation, samples and
    checkpoints. tokens_per_s: throughput over these seconds, all devices together.
    """

    params: Params
    step: int
    train_loss: float
    eval_metrics: dict[str, float]
    tokens_per_s: float
    seconds: float
    params_count: int


def train(
    workdir: str | os.PathLike, loop_config: LoopConfig, optimizer_config: OptimizerConfig, task: Task
) -> TrainResult:
    """Trains ``task`` to its last step, from the newest checkpoint in ``workdir`` if there is one.

    Writes ``config.json``, ``checkpoints/``, ``best/``, ``metrics.jsonl`` and ``tensorboard/`` in ``workdir``. However
    often it is killed and called again, it ends with the same parameters, bit for bit. Raises UserError (a checkpoint
    of another config, a directory that cannot be written), Diverged (a metric is not finite), Interrupted (SIGTERM or
    SIGINT; the state is saved).
    """
    workdir = check_workdir(workdir)
    mesh = make_mesh(loop_config.mesh)
    config = run_config(loop_config, optimizer_config, task)
    steps = loop_config.steps
    with locked(workdir), jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        check_shared(workdir)

        # Build.
        trainer = make_trainer(task, optimizer_config, steps, loop_config.seed, mesh)
        data = cast(DataIterator, iter(task.train_data))

        # Restore, in this order: 1. find the newest checkpoint whose files are whole; 2. compare its config with this
        # run's (so far nothing is written); 3. restore the state and the data's position; 4. write the config; 5. drop
        # the metrics of later steps.
        state = restore_latest(workdir, trainer.abstract, data, config)
        start = 0 if state is None else int(state.step)
        announce(task, trainer.abstract.params, mesh, start, loop_config, optimizer_config)
        if state is not None and start == steps:
            return result_of(workdir, task, state)
        state = trainer.init() if state is None else state
        signals = stack.enter_context(StopSignals())
        checkpoints = CheckpointWriter(workdir, config, loop_config.keep_checkpoints, loop_config.keep_every_minutes)
        stack.callback(checkpoints.close)
        checkpoints.check_room(trainer.abstract)
        if jax.process_index() == 0:
            write_config(workdir, config | {"loop": dataclasses.asdict(loop_config)})
        metrics = MetricsWriter(workdir, start)
        stack.callback(metrics.close)
        progress = Progress(metrics, start, steps, task.tokens_per_step, loop_config.log_every, task.unit)
        profile = stack.enter_context(contextlib.ExitStack())

        def due(step: int, every: int) -> bool:
            return step == steps or (every > 0 and step % every == 0)

        def save(step: int, state: TrainState) -> None:
            if not all_finite(state):
                raise Diverged(
                    f"a parameter is not finite after step {step}: the run stops, earlier checkpoints are kept"
                )
            metrics.flush()
            checkpoints.save(state, data)

        def evaluate_and_save_best(step: int, params: Params) -> dict[str, float]:
            values = {name: float(value) for name, value in task.evaluate(params).items()}  # type: ignore[misc]
            checkpoints.save_best(step, params, values)
            return values

        def overdue() -> bool:
            return 0 < loop_config.checkpoint_every_minutes <= checkpoints.minutes_since_save()

        def interrupted(stop: str, step: int) -> Interrupted:
            return Interrupted(
                f"{stop}: stopped after step {step}, which is saved; the same command goes on from there"
            )

        # Step.
        for step in range(start + 1, steps + 1):
            if loop_config.profile_steps and step == loop_config.profile_start:
                profile.enter_context(jax.profiler.trace(workdir / "profile"))
            batch = put_batch(next_batch(data, step), mesh, optimizer_config.accumulate)
            state, step_metrics = trainer.step(state, batch)
            progress.push(step, step_metrics)  # waits for the step before, while this one runs
            if loop_config.profile_steps and step == loop_config.profile_start + loop_config.profile_steps - 1:
                progress.drain()
                profile.close()

            if task.evaluate and due(step, loop_config.eval_every):
                values = progress.timed(step, "evaluation", evaluate_and_save_best, step, state.params)
                progress.record_evaluation(step, values)
            if task.sample and due(step, loop_config.sample_every):
                progress.record_sample(step, progress.timed(step, "sample", task.sample, state.params))
            request = signals.requested(save=overdue())
            if request or due(step, loop_config.checkpoint_every):
                progress.timed(step, "checkpoint", save, step, state)
            if request not in (None, SAVE):
                checkpoints.wait()
                raise interrupted(request, step)
        checkpoints.wait()
        if stop := signals.requested_now():
            raise interrupted(stop, steps)
    multihost_utils.sync_global_devices("the first process has closed its files")
    return result_of(workdir, task, state)


def check_shared(workdir: pathlib.Path) -> None:
    """Raises UserError unless this process sees the work directory that process 0 has made."""
    multihost_utils.sync_global_devices("the work directory is made")
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not workdir.is_dir():
        if time.monotonic() > deadline:
            raise UserError(
                f"workdir={workdir}: process {jax.process_index()} does not see the directory that process 0 made; "
                "give one on a file system that all hosts share"
            )
        time.sleep(1)


def next_batch(data: Iterator[Any], step: int) -> Any:
    try:
        return next(data)
    except StopIteration:
        raise UserError(f"the training data ended before step {step}: repeat it, or ask for fewer steps") from None


def run_config(loop_config: LoopConfig, optimizer_config: OptimizerConfig, task: Task) -> Config:
    """The run's config (`training.run_config`): all that must agree for a run to resume from a checkpoint.

    The mesh and the intervals of checkpoints, evaluations and progress lines do not count; ``config.json`` has them in
    its field ``loop``.
    """
    return {
        "experiment": task.name,
        "steps": loop_config.steps,
        "seed": loop_config.seed,
        "optimizer": dataclasses.asdict(optimizer_config),
        "task": task.config,
    }


def announce(
    task: Task, params: Params, mesh: Mesh, start: int, loop_config: LoopConfig, optimizer_config: OptimizerConfig
) -> None:
    """Prints what is about to run: the parameters, the devices, the step that the run starts from."""
    axes = ",".join(f"{name}:{size}" for name, size in mesh.shape.items() if size > 1)
    say(f"{task.name}\n{parameter_table(params)}")
    say(f"devices: {mesh.size} x {jax.devices()[0].device_kind}" + (f", mesh {axes}" if axes else ""))
    if start:
        say(f"restored step {start} of {loop_config.steps}")
    if optimizer_config.warmup_steps >= loop_config.steps:
        logging.warning("warmup_steps=%d is not below steps=%d", optimizer_config.warmup_steps, loop_config.steps)


def result_of(workdir: pathlib.Path, task: Task, state: TrainState) -> TrainResult:
    """The result of a finished run, computed from its metrics, so that a later process gets the same."""
    step = int(state.step)
    records = [record for record in read_metrics(workdir) if record["step"] <= step]
    training = [record for record in records if record["kind"] == "train"]
    if not training:
        raise UserError(f"the run in {workdir} is complete, but {FILE_NAME}, which holds its losses, is gone")
    losses = [record["loss"] for record in training[-LOSS_WINDOW:]]
    seconds = sum(record["seconds"] for record in training)
    evaluations = [record for record in records if record["kind"] == "eval" and record["step"] == step]
    return TrainResult(
        params=state.params,
        step=step,
        train_loss=sum(losses) / len(losses),
        eval_metrics={name: value for name, value in evaluations[-1].items() if name not in RECORD_FIELDS}
        if evaluations
        else {},
        tokens_per_s=task.tokens_per_step * len(training) / max(seconds, 1e-9),
        seconds=seconds,
        params_count=count_parameters(state.params),
    )
