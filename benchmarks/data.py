"""Throughput of the input pipelines in tokens a second, to compare with a training step (`benchmarks.train`).

    python -m benchmarks.data [--out=data.json]

Text: random windows of 64 M tokens in a file of 16-bit tokens, 16 x 256 and 512 x 512. RegBench: batches of 1,000
problems. MQAR: batches of generated sequences. All in one process, without workers; medians of 5 runs of 20 batches,
after 2.

Then the cost of input in a training step: the `small` mosaic takes STEPS steps on batches of 16 x 256 that are fetched
as in the training loop, each while the step before it runs, alternating with as many steps on one batch that is on the
device already.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import REPEATS, build, report, spread, timed
from benchmarks.train import training_task
from experiments import entry
from mosaics_jax.data import mqar, regbench
from mosaics_jax.data.automata import AutomataConfig
from mosaics_jax.data.windows import random_windows
from mosaics_jax.training.mesh import make_mesh, put_batch
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import make_trainer

TOKENS, BATCHES = 2**26, 20
STEPS, TURN = 20, 5  # steps of either kind, and how many of one kind before the other has its turn


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokens.bin"
        np.random.default_rng(0).integers(2**13, size=TOKENS, dtype=np.uint16).tofile(path)
        tokens = np.memmap(path, np.uint16, "r")
        problems = regbench.open_regbench(regbench.RegBenchConfig(num_train=1000), AutomataConfig(), Path(directory), 1)
        recall = mqar.sequences(mqar.MQARConfig(), 0, 20_000)
        sources: dict[str, Iterator[Any]] = {
            "text, 16 x 256": iter(random_windows(tokens, 256, 16, 0)),
            "text, 512 x 512": iter(random_windows(tokens, 512, 512, 0)),
            "RegBench, 32": iter(regbench.training_batches(problems.train, regbench.BatchConfig(), 0)),
            "MQAR, 512 x 64": iter(mqar.training_batches(recall, 512, 0)),
        }
        rows = [{"source": name, **rate(source)} for name, source in sources.items()]
        beside = beside_steps(sources["text, 16 x 256"])
    lines = [("source", "tokens/s"), *((f"{row['source']}", f"{row['tokens_per_s']:,.0f}") for row in rows)]
    print("\n" + "\n".join(f"{name}: {value:.6g}" for name, value in beside.items()))
    report(lines, {"batches": BATCHES, "repeats": REPEATS.value, "rows": rows, "beside_steps": beside})


def rate(source: Iterator[Any]) -> dict[str, float]:
    """Input tokens a second."""
    tokens: list[int] = []

    def read() -> None:
        tokens.append(sum(next(source)["inputs"].size for _ in range(BATCHES)))

    seconds = timed(read, REPEATS.value)
    rates = [count / s for count, s in zip(tokens[-len(seconds) :], seconds, strict=True)]
    return {"tokens_per_s": float(np.median(rates)), **spread(seconds)}


def beside_steps(source: Iterator[Any]) -> dict[str, float]:
    """Seconds of a step with fresh batches and with one batch, and seconds to make and place a batch during a step.

    ``waits`` counts those of the ``steps`` whose batch was ready only after the step before had ended.
    """
    model = build("mosaic", "small", **dict.fromkeys(("dropout", "ic_dropout", "hd_dropout"), 0.05), context_length=256)
    mesh = make_mesh("data:-1")
    with jax.set_mesh(mesh):
        trainer = make_trainer(training_task(model, 16, 256), OptimizerConfig(), 1000, 0, mesh)
        state = trainer.init()

        def fresh() -> Any:
            return put_batch(next(source), mesh)

        same = fresh()

        def steps_on(batch: Callable[[], Any]) -> list[tuple[float, float, bool]]:
            """Seconds of each step, seconds of its batch, and whether the device waited for it."""
            nonlocal state
            state, before = trainer.step(state, same)
            times = []
            for _ in range(TURN):
                began = time.perf_counter()
                data = batch()
                fetching = time.perf_counter() - began
                waited = before["loss"].is_ready()  # type: ignore[attr-defined]  # not in jax's stubs
                state, metrics = trainer.step(state, data)
                jax.block_until_ready(before)
                times.append((time.perf_counter() - began, fetching, waited))
                before = metrics
            jax.block_until_ready(before)
            return times

        steps_on(lambda: same)  # compiles
        turns = [(steps_on(fresh), steps_on(lambda: same)) for _ in range(STEPS // TURN)]
    with_input, without = (list(itertools.chain.from_iterable(kind)) for kind in zip(*turns, strict=True))
    return {
        "step_with_input_s": statistics.median(seconds for seconds, _, _ in with_input),
        "step_without_s": statistics.median(seconds for seconds, _, _ in without),
        "input_s": statistics.median(fetching for _, fetching, _ in with_input),
        "steps": len(with_input),
        "waits": sum(waited for _, _, waited in with_input),
    }


if __name__ == "__main__":
    entry.run(main)
