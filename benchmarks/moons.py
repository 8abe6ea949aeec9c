"""Three moons: seconds of both trainings, 500 steps of 64 signals of 800 points, for one seed and for several at once.

    python -m benchmarks.moons [--seeds=1,8] [--out=moons.json]

Times exclude compilation. A pair is a query and a point that it attends to, in one head of one seed. For scale, on 2
cores of an Intel Xeon at 2.5 GHz and for one seed: the authors' MLX script takes 27 and 71 minutes (one and three
heads), a port of it to PyTorch and C 72 and 130 seconds.
"""

from typing import Any

import jax
from absl import flags

from benchmarks.common import REPEATS, report, spread, timed
from experiments import entry
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.errors import UserError
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.runtime.cpu_devices import one_device_a_core
from mosaics_jax.tasks.moons import MOON_OPTIMIZER, CopiesConfig, make_task, network_name
from mosaics_jax.training.mesh import make_mesh, put_batch
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import say
from mosaics_jax.training.state import make_trainer

SEEDS = flags.DEFINE_list("seeds", ["1", "8"], "networks trained at once, comma separated")
STEPS = 500


def main(argv: list[str]) -> None:
    del argv
    try:
        seeds = [int(text) for text in SEEDS.value]
    except ValueError:
        raise UserError(f"--seeds={','.join(SEEDS.value)}: give numbers, e.g. 1,8") from None
    one_device_a_core(MoonsConfig().batch_size)
    rows: list[dict[str, Any]] = []
    for count in seeds:
        for heads in (1, 3):
            rows.append({"seeds": count, "heads": heads, **training(count, heads)})
            say(f"{rows[-1]}")
    lines = [("seeds", "heads", "s/step", f"s for {STEPS} steps", "ns a pair")]
    for row in rows:
        whole = f"{STEPS * row['median_s']:.1f}"
        lines.append((f"{row['seeds']}", f"{row['heads']}", f"{row['median_s']:.3f}", whole, f"{row['ns_a_pair']:.2f}"))
    report(lines, {"steps": STEPS, "repeats": REPEATS.value, "rows": rows})


def training(seeds: int, heads: int) -> dict[str, float]:
    """Seconds of a step of the experiment's own training."""
    moons = MoonsConfig()
    model = MoonMosaic(MoonMosaicConfig(heads=heads))
    task = make_task(network_name(heads), model, moons, CopiesConfig(seeds), seed=0)
    mesh = make_mesh("data:-1")
    with jax.set_mesh(mesh):
        trainer = make_trainer(task, OptimizerConfig(**MOON_OPTIMIZER), STEPS, 0, mesh)
        state, data = trainer.init(), iter(task.train_data)

        def step() -> None:
            nonlocal state
            state, metrics = trainer.step(state, put_batch(next(data), mesh))
            jax.block_until_ready((state, metrics))

        seconds = spread(timed(step, REPEATS.value))
    pairs = seeds * heads * moons.batch_size * moons.context_length * (moons.context_length - 1) / 2
    return {**seconds, "ns_a_pair": seconds["median_s"] / pairs * 1e9}


if __name__ == "__main__":
    entry.run(main)
