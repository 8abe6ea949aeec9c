"""In-context learning of random automata, RegBench: accuracy and TVD on held-out automata (v1 section 6.3, figure 9).

    python -m experiments.regbench --flagfile=experiments/flags/regbench_100.flags --model=mosaic --workdir=runs/mosaic

A model sees words of one automaton, and has to find the automaton in them to foretell the next symbol. `--model`, any
of twelve, and `--num_train` span the figure; `experiments.sweep` runs all of it and draws it. Published, with 100
automata to train on: mosaic accuracy 0.925, TVD 0.569; transformer 0.523, 0.682. With 1,000: mosaic 0.934, 0.215;
transformer 0.532, 0.631 (`mosaics_jax/evaluation/published.py` has all). WORKDIR/results.json holds the scores.
"""

import dataclasses
import os

import jax
from absl import flags

from experiments import entry, results, sequences
from mosaics_jax.data.automata import VOCAB_SIZE, AutomataConfig
from mosaics_jax.data.regbench import (
    VERSION,
    BatchConfig,
    RegBench,
    RegBenchConfig,
    evaluation_batches,
    open_regbench,
    training_batches,
)
from mosaics_jax.evaluation.regbench import baselines, model_scorer
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.training.progress import say

EXPERIMENT = "regbench"
CACHE_DIR = flags.DEFINE_string("cache_dir", "", "where the automata are kept (empty: WORKDIR/cache)")
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes that draw automata", lower_bound=1)
for data_config in (RegBenchConfig, AutomataConfig, BatchConfig):
    entry.define_flags(data_config)
sequences.define_flags()


def main(argv: list[str]) -> None:
    data, automata = entry.from_flags(RegBenchConfig), entry.from_flags(AutomataConfig)
    batch = entry.from_flags(BatchConfig)
    per_epoch = sequences.steps_per_epoch(data.num_train, batch.batch_size)
    run = sequences.run_from_flags(EXPERIMENT, VOCAB_SIZE, per_epoch)
    found = results.read(run.workdir, EXPERIMENT, results.given_settings())
    if found:
        say(f"{run.workdir} is finished\n{table(found)}")
        return
    benchmark = open_regbench(data, automata, CACHE_DIR.value or run.workdir / "cache", WORKERS.value)
    longest = max(split.lengths.max() for split in (benchmark.train, benchmark.validation, benchmark.test))
    run.check_length(-(-longest // batch.pad_multiple) * batch.pad_multiple)

    parts = jax.device_count() * run.optimizer.accumulate  # a mesh splits rows into as many at most
    places = {"process_index": jax.process_index(), "process_count": jax.process_count(), "row_multiple": parts}
    score = model_scorer(run.model)
    validation, test = (evaluation_batches(split, batch, **places) for split in (benchmark.validation, benchmark.test))
    trained = run.train(
        sequences.next_token_loss,
        training_batches(benchmark.train, batch, run.loop.seed, **places),
        {"version": VERSION, **(dataclasses.asdict(data) | dataclasses.asdict(automata) | dataclasses.asdict(batch))},
        int(benchmark.train.lengths.sum()) // per_epoch,
        lambda params: score(params, validation),
    )
    written = {
        "model": run.name,
        "num_train": data.num_train,
        **run.evaluate(lambda params: score(params, test), trained.params),
        **{f"validation_{name}": value for name, value in trained.eval_metrics.items()},
        "params": trained.params_count,
        "steps": trained.step,
        "seconds": trained.seconds,
        "seed": run.loop.seed,
        "baselines": baselines_of(benchmark, batch),
    }
    say(table(results.write(run.workdir, EXPERIMENT, written)))


def baselines_of(benchmark: RegBench, batch: BatchConfig) -> dict[str, dict[str, float]]:
    """Of the test split, all of which every process counts by itself."""
    return baselines(evaluation_batches(benchmark.test, batch))


def table(found: dict) -> str:
    """The scores on the test split, the model's and the baselines'."""
    scores = {found["model"]: found, **found["baselines"]}
    rows = [(name, f"{score['accuracy']:.3f}", f"{score['tvd']:.3f}") for name, score in scores.items()]
    return (
        f"\nRegBench, {found['num_train']:,} training automata, {found['params']:,} parameters, "
        f"{found['steps']:,} steps in {found['seconds']:,.0f} s\n"
        + aligned([("held-out automata", "accuracy", "TVD"), *rows])
    )


if __name__ == "__main__":
    entry.run(main)
