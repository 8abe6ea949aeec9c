"""Tokens a second that the input pipelines give, to be set beside what a training step takes (`benchmarks.train`).

    python -m benchmarks.data [--out=data.json]

Text: random windows of 64 M tokens in a file of 16-bit tokens, 16 x 256 and 512 x 512. RegBench: batches of 1,000
problems. MQAR: batches of made sequences. In one process, without workers; medians of 5 after 2 of 20 batches each.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPEATS, report, spread, timed
from experiments import entry
from mosaics_jax.data import mqar, regbench
from mosaics_jax.data.automata import AutomataConfig
from mosaics_jax.data.windows import random_windows

TOKENS, BATCHES = 2**26, 20


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
    lines = [("source", "tokens/s"), *((f"{row['source']}", f"{row['tokens_per_s']:,.0f}") for row in rows)]
    report(lines, {"batches": BATCHES, "repeats": REPEATS.value, "rows": rows})


def rate(source: Iterator[Any]) -> dict[str, float]:
    """Input tokens a second."""
    taken: list[int] = []

    def take() -> None:
        taken.append(sum(next(source)["inputs"].size for _ in range(BATCHES)))

    seconds = timed(take, REPEATS.value)
    rates = [count / s for count, s in zip(taken[-len(seconds) :], seconds, strict=True)]
    return {"tokens_per_s": float(np.median(rates)), **spread(seconds)}


if __name__ == "__main__":
    entry.run(main)
