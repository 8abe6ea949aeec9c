"""In-context learning of random automata, RegBench: accuracy and TVD on held-out automata (v1 section 6.3, figure 9).

    python -m experiments.regbench --flagfile=experiments/flags/regbench_100.flags --model=mosaic --workdir=runs/mosaic

A model sees words of one automaton and has to infer the automaton from them to predict the next symbol. `--model`, any
of twelve, and `--num_train` span the figure; `experiments.sweep` runs all of it and draws it. Published, with 100
automata to train on: mosaic accuracy 0.925, TVD 0.569; transformer 0.523, 0.682. With 1,000: mosaic 0.934, 0.215;
transformer 0.532, 0.631 (`mosaics_jax/evaluation/published.py` has all). WORKDIR/results.json holds the scores.
"""

import os
from typing import Any

import jax
from absl import flags

from experiments import entry
from experiments.entry.sequence_flags import REGBENCH
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from experiments.sweeps import results
from mosaics_jax.data.regbench import open_regbench
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.tasks.regbench import baseline_scores, make_task
from mosaics_jax.training.loop import train
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.progress import say

CACHE_DIR = flags.DEFINE_string("cache_dir", "", "where the automata are kept (empty: WORKDIR/cache)")
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes that draw automata", lower_bound=1)
define_workdir_flag()
REGBENCH.define_flags()


def main(argv: list[str]) -> None:
    workdir, setup = workdir_from_flags(), REGBENCH.setup_from_flags()
    finished = results.read_same(workdir, REGBENCH.name, setup.model_name, setup.configs())
    if finished:
        say(f"{workdir} is finished\n{table(finished)}")
        return
    data = open_regbench(setup.data.problems, setup.data.automata, CACHE_DIR.value or workdir / "cache", WORKERS.value)
    row_multiple = jax.device_count() * setup.optimizer.accumulate  # a mesh splits rows into as many parts at most
    task = make_task(setup.model_name, setup.model, data, setup.data, seed=setup.loop.seed, row_multiple=row_multiple)
    trained = train(workdir, setup.loop, setup.optimizer, task)
    with jax.set_mesh(make_mesh(setup.loop.mesh)):
        scores = task.test(trained.params)
    written = {
        "model": setup.model_name,
        "num_train": setup.data.num_train,
        **scores,
        **{f"validation_{name}": value for name, value in trained.eval_metrics.items()},
        "params": trained.params_count,
        "steps": trained.step,
        "seconds": trained.seconds,
        "seed": setup.loop.seed,
        "baselines": baseline_scores(data, setup.data),
    }
    say(table(results.write(workdir, REGBENCH.name, setup, written)))


def table(scored: dict[str, Any]) -> str:
    """The scores on the test split, those of the model and of the baselines."""
    scores = {scored["model"]: scored, **scored["baselines"]}
    rows = [(name, f"{score['accuracy']:.3f}", f"{score['tvd']:.3f}") for name, score in scores.items()]
    return (
        f"\nRegBench, {scored['num_train']:,} training automata, {scored['params']:,} parameters, "
        f"{scored['steps']:,} steps in {scored['seconds']:,.0f} s\n"
        + aligned([("held-out automata", "accuracy", "TVD"), *rows])
    )


if __name__ == "__main__":
    entry.run(main)
