"""Multi-query associative recall: accuracy at the queries (Arora et al. 2024, arXiv 2312.04927, figure 2).

    python -m experiments.mqar --flagfile=experiments/flags/mqar_64.flags --model=mosaic --n_embd=64 --workdir=runs/mqar

A sequence is a list of key-value pairs, then keys whose values the model has to recall. `--model`, `--n_embd` and
`--num_pairs` span the figure, best over `--learning_rate`; `experiments.sweep` runs all of it and draws it. Expected:
attention and mosaics answer all queries at any width; recurrent models need a width that grows with the pairs. The
blocks here keep their feed-forward layers and persistent memories, which the published runs left out.
WORKDIR/results.json holds the accuracy.
"""

from typing import Any

import jax

from experiments import entry
from experiments.entry.sequence_flags import MQAR
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from experiments.sweeps import results
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.tasks.mqar import make_data, make_task
from mosaics_jax.training.loop import train
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.progress import say

define_workdir_flag()
MQAR.define_flags()


def main(argv: list[str]) -> None:
    workdir, setup = workdir_from_flags(), MQAR.setup_from_flags()
    finished = results.read_same(workdir, MQAR.name, setup.model_name, setup.configs())
    if finished:
        say(f"{workdir} is finished\n{table(finished)}")
        return
    task = make_task(setup.model_name, setup.model, make_data(setup.data), setup.data, seed=setup.loop.seed)
    trained = train(workdir, setup.loop, setup.optimizer, task)
    with jax.set_mesh(make_mesh(setup.loop.mesh)):
        scores = task.test(trained.params)
    written = {
        "model": setup.model_name,
        "n_embd": setup.model_config.n_embd,
        "num_pairs": setup.data.sequences.num_pairs,
        "context_length": setup.data.sequences.context_length,
        "num_train": setup.data.num_train,
        **scores,
        "validation_accuracy": trained.eval_metrics["accuracy"],
        "params": trained.params_count,
        "steps": trained.step,
        "seconds": trained.seconds,
        "seed": setup.loop.seed,
    }
    say(table(results.write(workdir, MQAR.name, setup, written)))


def table(scored: dict[str, Any]) -> str:
    """The accuracy on the test split, with the sizes of model and data."""
    rows = [
        ("model", "width", "pairs", "length", "parameters", "steps", "seconds", "accuracy"),
        (
            scored["model"],
            *(f"{scored[name]:,}" for name in ("n_embd", "num_pairs", "context_length", "params", "steps")),
            f"{scored['seconds']:,.0f}",
            f"{scored['accuracy']:.3f}",
        ),
    ]
    return "\n" + aligned(rows)


if __name__ == "__main__":
    entry.run(main)
