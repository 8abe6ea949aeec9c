"""The one training loop: build, restore, step."""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from absl import logging
from jax.sharding import Mesh

from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.checkpoints import CheckpointWriter, restore_latest
from mosaics_jax.training.mesh import RULES, make_mesh, put_batch
from mosaics_jax.training.metrics import FILE_NAME, MetricsWriter, read_metrics
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import Task, TrainState, all_finite, count_parameters, make_trainer, parameter_table
from mosaics_jax.training.stopping import Diverged, Interrupted, StopSignals

LOSS_WINDOW = 100  # steps at the end of a run whose mean is its training loss


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a run is, and what it does between steps."""

    steps: int = setting(1500, "updates to make")
    eval_every: int = setting(500, "steps between evaluations (0: only at the end)")
    sample_every: int = setting(500, "steps between samples (0: only at the end)")
    checkpoint_every: int = setting(500, "steps between checkpoints (0: only at the end)")
    log_every: int = setting(50, "steps between progress lines and TensorBoard points")
    keep_checkpoints: int = setting(2, "checkpoints to keep, the newest")
    seed: int = setting(0, "seed of initialisation and dropout")
    mesh: str = setting("data:-1", "devices by axis: data, fsdp, tensor, sequence; -1 is the rest; e.g. fsdp:4,tensor:-1")
    profile_start: int = setting(10, "first step to profile")
    profile_steps: int = setting(0, "steps to profile, into WORKDIR/profile (0: none)")

    def __post_init__(self) -> None:
        least = {"steps": 1, "log_every": 1, "keep_checkpoints": 1, "profile_start": 1}
        for field in dataclasses.fields(self):
            if field.name != "mesh" and getattr(self, field.name) < least.get(field.name, 0):
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least {least.get(field.name, 0)}")


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a finished run gives, the same whether it was interrupted or not.

    train_loss: mean over the last min(100, steps) steps. eval_metrics: of the evaluation after the last step.
    seconds: spent in steps, without compilation, evaluation, samples and checkpoints; tokens_per_s: over these.
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

    Writes ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/`` in ``workdir``. However often it is killed and called
    again, it ends with the same parameters, bit for bit. Raises UserError (checkpoints of another config, a directory
    that cannot be written), Diverged (a metric is not finite) and Interrupted (SIGTERM or SIGINT; the state is saved).
    """
    workdir = check_workdir(workdir)
    mesh = make_mesh(loop_config.mesh)
    config = run_config(loop_config, optimizer_config, task)
    steps = loop_config.steps
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES), contextlib.ExitStack() as stack:
        # Build.
        trainer = make_trainer(task, optimizer_config, steps, loop_config.seed, mesh)
        data = iter(task.train_data)

        # Restore, in this order: 1. find the newest checkpoint whose files are whole; 2. compare its config with this run's
        # (nothing has been written so far); 3. the state, and the data's position; 4. forget the metrics of later steps.
        state = restore_latest(workdir, trainer.abstract, data, config)
        start = 0 if state is None else int(state.step)
        announce(task, trainer.abstract.params, mesh, start, loop_config, optimizer_config)
        if state is not None and start == steps:
            return result_of(workdir, task, state)
        state = trainer.init() if state is None else state
        metrics = stack.enter_context(contextlib.closing(MetricsWriter(workdir, start)))
        checkpoints = stack.enter_context(contextlib.closing(CheckpointWriter(workdir, config, loop_config.keep_checkpoints)))
        signals = stack.enter_context(StopSignals())
        progress = Progress(metrics, start, steps, task.tokens_per_step, loop_config.log_every)

        def save(state: TrainState) -> None:
            if not all_finite(state):
                raise Diverged(f"a parameter is not finite after step {int(state.step)}: the run stops, earlier checkpoints are kept")
            metrics.flush()
            checkpoints.save(state, data)

        # Step.
        for step in range(start + 1, steps + 1):
            if loop_config.profile_steps and step == loop_config.profile_start:
                profile = stack.enter_context(jax.profiler.trace(workdir / "profile"))
            batch = put_batch(next(data), mesh, optimizer_config.accumulate)
            state, step_metrics = trainer.step(state, batch)
            progress.push(step, step_metrics)  # waits for the step before, while this one runs

            def due(every: int, step: int = step) -> bool:
                return step == steps or (every > 0 and step % every == 0)

            if task.evaluate and due(loop_config.eval_every):
                values = progress.timed("evaluation", step, task.evaluate, state.params)
                progress.evaluated(step, values)
            if task.sample and due(loop_config.sample_every):
                text = progress.timed("sample", step, task.sample, state.params)
                progress.sampled(step, text)
            stop = signals.stop_after(step)
            if stop or due(loop_config.checkpoint_every):
                progress.timed("checkpoint", step, save, state)
            if stop and step < steps:
                checkpoints.wait()
                raise Interrupted(f"{stop}: stopped after step {step}, which is saved; the same command goes on from there")
    return result_of(workdir, task, state)


def run_config(loop_config: LoopConfig, optimizer_config: OptimizerConfig, task: Task) -> dict[str, Any]:
    """All that must agree between a checkpoint and the run that goes on from it; the mesh and the intervals need not."""
    return {
        "experiment": task.name,
        "steps": loop_config.steps,
        "seed": loop_config.seed,
        "optimizer": dataclasses.asdict(optimizer_config),
        "task": task.config,
    }


def check_workdir(workdir: str | os.PathLike) -> pathlib.Path:
    """The work directory, as a path; raises UserError if it is not a place to write in. Creates nothing."""
    if "://" in str(workdir):
        raise UserError(f"workdir={workdir}: give a path of a mounted file system, not a URL")
    path = pathlib.Path(workdir).absolute()
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UserError(f"workdir={workdir}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"workdir={workdir}: no permission to write in {existing}")
    return path


def announce(task: Task, params: Params, mesh: Mesh, start: int, steps: int, optimizer_config: OptimizerConfig) -> None:
    """Says what is about to run: the parameters, the mesh, where it starts."""
    axes = ", ".join(f"{name}:{size}" for name, size in mesh.shape.items() if size > 1)
    say(f"{task.name}\n{parameter_table(params)}")
    say(f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}" + (f", mesh {axes}" if axes else ""))
    if start:
        say(f"restored step {start} of {steps}")
    if optimizer_config.warmup_steps >= steps:
        logging.warning("warmup_steps=%d is not below steps=%d: all is warm-up", optimizer_config.warmup_steps, steps)


def result_of(workdir: pathlib.Path, task: Task, state: TrainState) -> TrainResult:
    """The result of a finished run, from its metrics file: the same in the process that made the last step and in a later one."""
    step = int(state.step)
    records = read_metrics(workdir)
    losses = [record["loss"] for record in records if record["kind"] == "train"][-LOSS_WINDOW:]
    if not losses:
        raise UserError(f"the run in {workdir} is complete, but its metrics.jsonl, with the losses, is gone")
    seconds = sum(record["seconds"] for record in records if record["kind"] == "train")
    evaluations = [record["values"] for record in records if record["kind"] == "eval" and record["step"] == step]
    return TrainResult(
        params=state.params,
        step=step,
        train_loss=sum(losses) / len(losses),
        eval_metrics=evaluations[-1] if evaluations else {},
        tokens_per_s=task.tokens_per_step * step / max(seconds, 1e-9),
        seconds=seconds,
        params_count=count_parameters(state.params),
    )
