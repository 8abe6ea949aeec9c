"""Three moons: 54 parameters that learn to split a task into its parts (v1 section 4, figures 3 to 5, appendix A).

    python -m experiments.three_moons --workdir=runs/moons                  # one head and three, one seed
    python -m experiments.three_moons --workdir=runs/moons32 --seeds=32     # 32 networks of each kind, trained together

Expected on the held-out signal (periods 1, 2, 3; 44, 89 and 133 steps, all together 267): the error of three heads
falls at the single periods, with its knee at or before 133; that of one head at the total period alone. Final losses
near 0.0024 (one head) and 0.0008 (three). WORKDIR/one_head and WORKDIR/three_heads hold the runs,
WORKDIR/results.json and the figures, as PNG and PDF, the results. `--authors_metric` computes errors as the published
script did.
"""

import jax
from absl import flags

from experiments import entry
from experiments.entry.results import configs_that_ran
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.moon_results import evaluate, report
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.runtime.cpu_devices import one_device_a_core
from mosaics_jax.tasks.moons import MOON_OPTIMIZER, CopiesConfig, make_task, network_name, trained_copies
from mosaics_jax.training.loop import LoopConfig, train
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.optimizer import OptimizerConfig

HEADS = flags.DEFINE_list("heads", ["1", "3"], "numbers of heads, comma separated: a network for each")
STARTS = flags.DEFINE_integer("starts", 512, "random starts that an error is the mean over", lower_bound=1)
AUTHORS_METRIC = flags.DEFINE_bool(
    "authors_metric", False, "compute errors as the published script did, with its faults"
)
define_workdir_flag()
entry.define_flags(CopiesConfig)
entry.define_flags(MoonsConfig)
entry.define_flags(MoonMosaicConfig, skip=("heads",))
entry.define_flags(OptimizerConfig, **MOON_OPTIMIZER)
entry.define_flags(LoopConfig, steps=500, eval_every=0, sample_every=0, checkpoint_every=100, log_every=50)


def main(argv: list[str]) -> None:
    workdir = workdir_from_flags()
    moons, copies = entry.from_flags(MoonsConfig), entry.from_flags(CopiesConfig)
    loop, optimizer = entry.from_flags(LoopConfig), entry.from_flags(OptimizerConfig)
    if moons.context_length <= 35:
        raise UserError(f"context_length={moons.context_length}: errors need windows of more than 35 points")
    one_device_a_core(moons.batch_size, STARTS.value)
    configs = [entry.from_flags(MoonMosaicConfig, heads=heads) for heads in head_counts()]
    networks, configs_by_name = [], {}
    for config in configs:
        name = network_name(config.heads)
        task = make_task(name, MoonMosaic(config), moons, copies, seed=loop.seed)
        networks.append(trained_copies(name, config, train(workdir / name, loop, optimizer, task), workdir / name))
        configs_by_name[name] = configs_that_ran(config, task.config["data"], optimizer, loop)
    with jax.set_mesh(make_mesh(loop.mesh)):
        results = evaluate(networks, moons, STARTS.value, loop.seed, AUTHORS_METRIC.value)
    for name, ran in configs_by_name.items():
        results[name] |= ran
    report(results, networks, moons, workdir)


def head_counts() -> list[int]:
    """The numbers in --heads. Raises UserError if one is not a number or is given twice."""
    try:
        counts = [int(text) for text in HEADS.value]
    except ValueError:
        raise UserError(f"--heads={','.join(HEADS.value)}: give numbers, e.g. 1,3") from None
    if not counts or len(set(counts)) < len(counts):
        raise UserError(f"--heads={','.join(HEADS.value)}: give each number of heads once, e.g. 1,3")
    return counts


if __name__ == "__main__":
    entry.run(main)
