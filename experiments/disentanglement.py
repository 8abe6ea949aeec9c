"""How often training takes a task apart: the share of networks that disentangle, by moons and heads (v1 section 4).

    python -m experiments.disentanglement --workdir=runs/disentanglement --seeds=32

For every number of moons, networks with every number of heads that divides it, each trained from --seeds beginnings on
the same batches. WORKDIR/results.json and the printed table hold the shares. What counts as disentangled stands in
`mosaics_jax.evaluation.disentanglement`: each head on one moon of its own, so that fewer heads than moons can be so
only by leaving moons out. Batches are a quarter of those of `three_moons`, so that the grid takes hours, not a day, on
2 CPU cores.
"""

import json
from typing import Any

import numpy as np
from absl import flags

from experiments import entry
from experiments.moons import MOON_OPTIMIZER, moon_network, one_device_a_core
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.moons import head_disentanglement
from mosaics_jax.models.moons import MoonMosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.workdir import check_workdir
from mosaics_jax.training.loop import LoopConfig, train
from mosaics_jax.training.optimizer import OptimizerConfig

WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; the same command goes on from there")
COUNTS = flags.DEFINE_list("moon_counts", ["2", "3", "4", "5"], "numbers of moons, comma separated")
SEEDS = flags.DEFINE_integer("seeds", 32, "networks of each kind, trained at once", lower_bound=1)
entry.define_flags(MoonsConfig, skip=("moons", "train_periods", "held_out_periods"), batch_size=16)
entry.define_flags(MoonMosaicConfig, skip=("moons", "heads"))
entry.define_flags(OptimizerConfig, **MOON_OPTIMIZER)
entry.define_flags(LoopConfig, steps=500, eval_every=0, sample_every=0, checkpoint_every=100, log_every=50)


def main(argv: list[str]) -> None:
    if not WORKDIR.value:
        raise UserError("--workdir is needed: a directory for checkpoints and results")
    workdir = check_workdir(WORKDIR.value)
    try:
        counts = [int(text) for text in COUNTS.value]
    except ValueError:
        counts = []
    if not counts:
        raise UserError(f"--moon_counts={','.join(COUNTS.value)}: give numbers, e.g. 2,3")
    loop, optimizer = entry.from_flags(LoopConfig), entry.from_flags(OptimizerConfig)
    # Every config is made, and so checked, before anything is trained.
    kinds = [
        (entry.from_flags(MoonsConfig, moons=moons), entry.from_flags(MoonMosaicConfig, moons=moons, heads=heads))
        for moons in counts
        for heads in range(1, moons + 1)
        if moons % heads == 0
    ]
    one_device_a_core(kinds[0][0].batch_size)
    results: list[dict[str, Any]] = []
    for moons, config in kinds:
        network = moon_network(config, moons, SEEDS.value, loop.seed)
        run = workdir / f"{config.moons}_moons_{config.heads}_heads"
        network.take(train(run, loop, optimizer, network.task), run)
        found = [head_disentanglement(params, config) for params in network.params]
        results.append(
            {
                "moons": config.moons,
                "heads": config.heads,
                "share": float(np.mean([one.disentangled for one in found])),
                "disentangled": [one.disentangled for one in found],
                "final_losses": network.final_losses,
                "train_seconds": network.seconds,
            }
        )
        staging.write_file(workdir / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        print(table(results), flush=True)


def table(results: list[dict[str, Any]]) -> str:
    """A line for each kind of network."""
    lines = ["moons  heads  disentangled  median final loss"]
    for row in results:
        share = f"{sum(row['disentangled'])} of {len(row['disentangled'])}"
        lines.append(f"{row['moons']:>5}  {row['heads']:>5}  {share:>12}  {np.median(row['final_losses']):>17.5f}")
    return "\n".join(lines)


if __name__ == "__main__":
    entry.run(main)
