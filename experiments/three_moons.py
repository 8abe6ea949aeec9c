"""Three moons: 54 parameters that learn to take a task apart (v1 section 4, figures 3 to 5, appendix A).

    python -m experiments.three_moons --workdir=runs/moons                  # one head and three, one seed
    python -m experiments.three_moons --workdir=runs/moons32 --seeds=32     # 32 networks of each kind, trained together

Expected on the held-out signal (periods 1, 2, 3; 44, 89 and 133 steps, all together 267): the error of three heads
falls at the single periods, with its knee at or before 133; that of one head at the total period alone. Final losses
near 0.0024 (one head) and 0.0008 (three). WORKDIR/one_head and three_heads hold the runs, WORKDIR/results.json and
the figures, as PNG and PDF, sum up. `--authors_metric` computes errors as the published script did.
"""

from pathlib import Path

import jax
from absl import flags

from experiments import entry
from experiments.moons import MOON_OPTIMIZER, evaluate, moon_network, one_device_a_core, report
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.errors import UserError
from mosaics_jax.models.moons import MoonMosaicConfig
from mosaics_jax.runtime.workdir import check_workdir
from mosaics_jax.training.loop import LoopConfig, train
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.optimizer import OptimizerConfig

WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; the same command goes on from there")
HEADS = flags.DEFINE_list("heads", ["1", "3"], "numbers of heads, comma separated: a network for each")
SEEDS = flags.DEFINE_integer("seeds", 1, "networks of each kind, trained at once", lower_bound=1)
STARTS = flags.DEFINE_integer("starts", 512, "random starts that an error is the mean over", lower_bound=1)
AUTHORS_METRIC = flags.DEFINE_bool(
    "authors_metric", False, "compute errors as the published script did, faults and all"
)
entry.define_flags(MoonsConfig)
entry.define_flags(MoonMosaicConfig, skip=("heads",))
entry.define_flags(OptimizerConfig, **MOON_OPTIMIZER)
entry.define_flags(LoopConfig, steps=500, eval_every=0, sample_every=0, checkpoint_every=100, log_every=50)


def main(argv: list[str]) -> None:
    if not WORKDIR.value:
        raise UserError("--workdir is needed: a directory for checkpoints, results and figures")
    workdir = check_workdir(WORKDIR.value)
    moons, loop, optimizer = (
        entry.from_flags(MoonsConfig),
        entry.from_flags(LoopConfig),
        entry.from_flags(OptimizerConfig),
    )
    if moons.context_length <= 35:
        raise UserError(f"context_length={moons.context_length}: errors need windows of more than 35 points")
    one_device_a_core(moons.batch_size, STARTS.value)
    configs = [entry.from_flags(MoonMosaicConfig, heads=heads) for heads in head_counts()]
    networks = [moon_network(config, moons, SEEDS.value, loop.seed) for config in configs]
    for network in networks:
        result = train(workdir / network.name, loop, optimizer, network.task)
        network.take(result, workdir / network.name)
    with jax.set_mesh(make_mesh(loop.mesh)):
        results = evaluate(networks, moons, STARTS.value, loop.seed, AUTHORS_METRIC.value)
    report(results, networks, moons, Path(workdir), AUTHORS_METRIC.value)


def head_counts() -> list[int]:
    """The numbers in --heads. Raises UserError if one is none."""
    try:
        counts = [int(text) for text in HEADS.value]
    except ValueError:
        raise UserError(f"--heads={','.join(HEADS.value)}: give numbers, e.g. 1,3") from None
    if not counts or len(set(counts)) < len(counts):
        raise UserError(f"--heads={','.join(HEADS.value)}: give each number of heads once, e.g. 1,3")
    return counts


if __name__ == "__main__":
    entry.run(main)
