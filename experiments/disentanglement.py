"""How often training splits a task into its parts: the share of networks that disentangle (v1 section 4).

    python -m experiments.disentanglement --workdir=runs/disentanglement --seeds=32

For every number of moons, networks with every number of heads that divides it, each trained from --seeds initial
parameters on the same batches. WORKDIR/results.json and the printed table hold the shares.
`mosaics_jax.evaluation.disentanglement` defines disentangled: each head reads one moon of its own, so that networks
with fewer heads than moons qualify only by leaving moons out. Batches are a quarter of those of `three_moons`, so that
the grid takes hours instead of a day on 2 CPU cores.
"""

import json
from typing import Any

import numpy as np
from absl import flags

from experiments import entry
from experiments.entry.results import configs_that_ran
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.moons import head_disentanglement
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.cpu_devices import one_device_a_core
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.tasks.moons import MOON_OPTIMIZER, CopiesConfig, make_task, network_name, trained_copies
from mosaics_jax.training.loop import LoopConfig, train
from mosaics_jax.training.optimizer import OptimizerConfig

COUNTS = flags.DEFINE_list("moon_counts", ["2", "3", "4", "5"], "numbers of moons, comma separated")
define_workdir_flag()
entry.define_flags(CopiesConfig, seeds=32)
entry.define_flags(MoonsConfig, skip=("moons", "train_periods", "held_out_periods"), batch_size=16)
entry.define_flags(MoonMosaicConfig, skip=("moons", "heads"))
entry.define_flags(OptimizerConfig, **MOON_OPTIMIZER)
entry.define_flags(LoopConfig, steps=500, eval_every=0, sample_every=0, checkpoint_every=100, log_every=50)


def main(argv: list[str]) -> None:
    workdir = workdir_from_flags()
    loop, optimizer = entry.from_flags(LoopConfig), entry.from_flags(OptimizerConfig)
    copies = entry.from_flags(CopiesConfig)
    # Every config is checked before the first network is trained.
    kinds = [
        (entry.from_flags(MoonsConfig, moons=moons), entry.from_flags(MoonMosaicConfig, moons=moons, heads=heads))
        for moons in moon_counts()
        for heads in range(1, moons + 1)
        if moons % heads == 0
    ]
    one_device_a_core(kinds[0][0].batch_size)
    results: list[dict[str, Any]] = []
    for moons, config in kinds:
        task = make_task(network_name(config.heads), MoonMosaic(config), moons, copies, seed=loop.seed)
        run = workdir / f"{config.moons}_moons_{config.heads}_heads"
        network = trained_copies(run.name, config, train(run, loop, optimizer, task), run)
        disentangled = [head_disentanglement(params, config).disentangled for params in network.params]
        results.append(
            {
                "moons": config.moons,
                "heads": config.heads,
                "share": float(np.mean(disentangled)),
                "disentangled": disentangled,
                "final_losses": network.final_losses,
                "train_seconds": network.seconds,
                **configs_that_ran(config, task.config["data"], optimizer, loop),
            }
        )
        staging.write_file(workdir / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        print(table(results), flush=True)


def moon_counts() -> list[int]:
    """The numbers in --moon_counts. Raises UserError if there are none."""
    try:
        counts = [int(text) for text in COUNTS.value]
    except ValueError:
        counts = []
    if not counts:
        raise UserError(f"--moon_counts={','.join(COUNTS.value)}: give numbers, e.g. 2,3")
    return counts


def table(results: list[dict[str, Any]]) -> str:
    """A row for each kind of network."""
    rows = [("moons", "heads", "disentangled", "median final loss")]
    for row in results:
        share = f"{sum(row['disentangled'])} of {len(row['disentangled'])}"
        rows.append((f"{row['moons']}", f"{row['heads']}", share, f"{np.median(row['final_losses']):.5f}"))
    return aligned(rows)


if __name__ == "__main__":
    entry.run(main)
