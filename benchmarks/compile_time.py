"""Seconds to compile the training step at published width (768, V 50304, 2 x 512), with 8, 12 and 18 blocks.

    python -m benchmarks.compile_time [--depths=8,12,18] [--out=compile_time.json]

Scanned blocks are compiled once, whatever their number; unrolled blocks one by one. Nothing is run, and the compilation
cache is off.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.common import SIZES, report
from benchmarks.train import training_task
from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.models import MemoryMosaic, MosaicConfig
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import say
from mosaics_jax.training.state import make_trainer

DEPTHS = flags.DEFINE_list("depths", ["8", "12", "18"], "numbers of blocks, comma separated")
BATCH, LENGTH = 2, 512


def main(argv: list[str]) -> None:
    del argv
    try:
        depths = [int(text) for text in DEPTHS.value]
    except ValueError:
        raise UserError(f"--depths={','.join(DEPTHS.value)}: give numbers, e.g. 8,18") from None
    jax.config.update("jax_enable_compilation_cache", False)
    rows: list[dict[str, Any]] = []
    for scan in (True, False):
        for depth in depths:
            rows.append({"scanned": scan, "blocks": depth, **compiled(depth, scan)})
            say(f"{rows[-1]}")
    least = {scan: next(row["compile_s"] for row in rows if row["scanned"] is scan) for scan in (True, False)}
    lines: list[tuple[str, ...]] = [("blocks", "scanned", "lowering, s", "compiling, s", f"over {depths[0]} blocks")]
    for row in rows:
        ratio = f"{row['compile_s'] / least[row['scanned']]:.2f}"
        seconds = (f"{row[name]:.1f}" for name in ("lower_s", "compile_s"))
        lines.append((f"{row['blocks']}", "yes" if row["scanned"] else "no", *seconds, ratio))
    report(lines, {"rows": rows})


def compiled(depth: int, scan: bool) -> dict[str, float]:
    """Seconds to trace and lower the step, and to compile it."""
    model = MemoryMosaic(MosaicConfig(**{**SIZES["published"], "n_layer": depth}, scan_layers=scan))
    mesh = make_mesh("data:-1")
    with jax.set_mesh(mesh):
        trainer = make_trainer(training_task(model, BATCH, LENGTH), OptimizerConfig(), 1000, 0, mesh)
        tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
        batch = {"inputs": tokens, "targets": tokens}
        began = time.perf_counter()
        lowered = trainer.step.lower(trainer.abstract, batch)  # type: ignore[attr-defined]  # typed as a function
        lowering = time.perf_counter()
        lowered.compile()
        return {"lower_s": lowering - began, "compile_s": time.perf_counter() - lowering}


if __name__ == "__main__":
    entry.run(main)
