"""A NaN batch in training of a three-moons network: one run stops at it, another skips it."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.fault_tools import bits
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.tasks.moons import MOON_OPTIMIZER, CopiesConfig, make_task, network_name
from mosaics_jax.training import Diverged, LoopConfig, OptimizerConfig, TrainResult, train
from mosaics_jax.training.checkpoint_files import damage, steps_in
from mosaics_jax.training.metrics import read_metrics

SPOILT = 23
LOOP = LoopConfig(steps=40, checkpoint_every=5, eval_every=0, sample_every=0, log_every=10)
MOONS = MoonsConfig(batch_size=4, context_length=60)
OPTIMIZER = OptimizerConfig(**MOON_OPTIMIZER)


class Spoilt:
    """A dataset whose batch number SPOILT, counted from 1, is NaN, also after a resume."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __iter__(self) -> Iterator[np.ndarray]:
        return _SpoiltIterator(iter(self._dataset))


class _SpoiltIterator:
    def __init__(self, batches: Any):
        self._batches = batches
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self) -> "_SpoiltIterator":
        return self

    def __next__(self) -> np.ndarray:
        number = self.get_state()["next_index"] + 1
        batch = next(self._batches)
        return np.full_like(batch, np.nan) if number == SPOILT else batch


def run(workdir: pathlib.Path, spoilt: bool, skip_spikes: float = 0.0) -> TrainResult:
    task = make_task(network_name(3), MoonMosaic(MoonMosaicConfig(heads=3)), MOONS, CopiesConfig(), seed=0)
    if spoilt:
        task = dataclasses.replace(task, train_data=Spoilt(task.train_data))
    with contextlib.redirect_stdout(io.StringIO()):
        return train(workdir, LOOP, dataclasses.replace(OPTIMIZER, skip_spikes=skip_spikes), task)


def cases(workdir: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """What was tried, and a list of what went wrong."""
    undisturbed = run(workdir / "undisturbed", spoilt=False)
    wrong = []
    message = ""
    try:
        run(workdir / "stopped", spoilt=True)
        wrong.append("the run did not stop")
    except Diverged as stop:
        message = str(stop)
    if f"loss is nan at step {SPOILT}" not in message:
        wrong.append(f"printed: {message}")
    checkpoints = workdir / "stopped" / "checkpoints"
    if steps_in(checkpoints)[0] != SPOILT // 5 * 5 or damage(checkpoints / str(steps_in(checkpoints)[0])):
        wrong.append("the last good checkpoint is not there")
    if bits(run(workdir / "stopped", spoilt=False).params) != bits(undisturbed.params):
        wrong.append("resumed with a good batch, the run ends otherwise")
    yield f"stopped: {message}", wrong

    skipping = run(workdir / "skipped", spoilt=True, skip_spikes=100.0)
    skipped = [record["step"] for record in read_metrics(workdir / "skipped") if record["kind"] == "skipped"]
    wrong = [] if skipped == [SPOILT] else [f"skipped: {skipped}"]
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(skipping.params)):
        wrong.append("the parameters are not finite")
    yield f"skipped on request: step {SPOILT}", wrong
