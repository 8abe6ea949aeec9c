"""Multi-query associative recall: accuracy at the queries (Arora et al. 2024, arXiv 2312.04927, figure 2).

    python -m experiments.mqar --flagfile=experiments/flags/mqar_64.flags --model=mosaic --n_embd=64 --workdir=runs/mqar

A sequence is a list of pairs, and then keys whose values are to be told. `--model`, `--n_embd` and `--num_pairs` span
the figure, best over `--learning_rate`; `experiments.sweep` runs all of it and draws it. What is expected: attention
and mosaics answer all queries at any width, recurrent models need a width that grows with the pairs. The blocks here
keep their feed-forward layers and persistent memories, which the published runs left out.
WORKDIR/results.json holds the accuracy.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from experiments import entry, results, sequences
from mosaics_jax.data.mqar import MQARConfig, training_batches
from mosaics_jax.data.mqar import sequences as make_sequences
from mosaics_jax.evaluation.mqar import evaluation_batches, query_loss, query_scorer
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.settings import setting
from mosaics_jax.training.progress import say

EXPERIMENT = "mqar"


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How many sequences, and how many at a time."""

    num_train: int = setting(100_000, "sequences to train on")
    num_validation: int = setting(1000, "sequences held out for validation")
    num_test: int = setting(3000, "sequences held out for the test")
    data_seed: int = setting(0, "seed of the sequences")
    batch_size: int = setting(512, "sequences in a batch, over all devices")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "data_seed" and getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")


entry.define_flags(MQARConfig)
entry.define_flags(SplitConfig)
# The published recipe, but for the warm-up.
sequences.define_flags(
    epochs=64, n_head=1, n_embd=64, dropout=0.1, learning_rate=2e-3, final_share=0.0, clip_norm=0.0, eval_every=500
)


def main(argv: list[str]) -> None:
    mqar, split = entry.from_flags(MQARConfig), entry.from_flags(SplitConfig)
    per_epoch = sequences.steps_per_epoch(split.num_train, split.batch_size)
    run = sequences.run_from_flags(EXPERIMENT, mqar.vocab_size, per_epoch)
    found = results.read(run.workdir, EXPERIMENT, results.given_settings())
    if found:
        say(f"{run.workdir} is finished\n{table(found)}")
        return
    # Held-out sequences come first, so that they are the same for every number of training sequences.
    parts = np.cumsum([0, split.num_validation, split.num_test, split.num_train]).tolist()
    validation_data, test_data, train_data = (
        make_sequences(mqar, split.data_seed, stop - start, start) for start, stop in itertools.pairwise(parts)
    )
    score = query_scorer(run.model, mqar.num_pairs)
    validation, test = (evaluation_batches(data, split.batch_size) for data in (validation_data, test_data))
    trained = run.train(
        functools.partial(query_loss, queries=mqar.num_pairs),
        training_batches(train_data, split.batch_size, run.loop.seed, jax.process_index(), jax.process_count()),
        {"mqar": dataclasses.asdict(mqar), "split": dataclasses.asdict(split)},
        split.batch_size * mqar.context_length,
        lambda params: score(params, validation),
    )
    written = {
        "model": run.name,
        "n_embd": run.model.config.n_embd,
        "num_pairs": mqar.num_pairs,
        "context_length": mqar.context_length,
        "num_train": split.num_train,
        **run.evaluate(lambda params: score(params, test), trained.params),
        "validation_accuracy": trained.eval_metrics["accuracy"],
        "params": trained.params_count,
        "steps": trained.step,
        "seconds": trained.seconds,
        "seed": run.loop.seed,
    }
    say(table(results.write(run.workdir, EXPERIMENT, written)))


def table(found: dict[str, Any]) -> str:
    """The accuracy on the test split, and what it belongs to."""
    rows = [
        ("model", "width", "pairs", "length", "parameters", "steps", "seconds", "accuracy"),
        (
            found["model"],
            *(f"{found[name]:,}" for name in ("n_embd", "num_pairs", "context_length", "params", "steps")),
            f"{found['seconds']:,.0f}",
            f"{found['accuracy']:.3f}",
        ),
    ]
    return "\n" + aligned(rows)


if __name__ == "__main__":
    entry.run(main)
