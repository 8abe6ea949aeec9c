"""Memory and time of a training step as the context grows: 12 blocks, 768 wide, batch 1, blocks scanned and recomputed.

    python -m benchmarks.long_context [--lengths=512,1024,2048,4096,8192,16384] [--out=long_context.json]

Each length has a process of its own. Two lines follow the table: a straight line fitted to the peaks (MiB at length 0,
MiB a position), and for each length its time over the time that its model FLOPs would take at the first length's rate:
1 means that time grows in proportion to FLOPs.
"""

import dataclasses
from typing import Any

import numpy as np
from absl import flags

from benchmarks.common import REPEATS, in_its_own_process, report
from benchmarks.train import Case, ours, table
from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.training.progress import say

LENGTHS = flags.DEFINE_list("lengths", ["512", "1024", "2048", "4096", "8192", "16384"], "positions, comma separated")


def main(argv: list[str]) -> None:
    del argv
    try:
        lengths = [int(text) for text in LENGTHS.value]
    except ValueError:
        raise UserError(f"--lengths={','.join(LENGTHS.value)}: give numbers, e.g. 512,1024") from None
    case = Case("mosaic", "published", "library", 0.05, "", 1, 0, REPEATS.value, remat="full")
    rows: list[dict[str, Any]] = []
    for length in lengths:
        rows.append({"model": "mosaic", **in_its_own_process(ours, dataclasses.replace(case, time=length))})
        say("  ".join(table(rows)[-1]))
    figures: dict[str, Any] = {"repeats": REPEATS.value, "rows": rows}
    lines = table(rows)
    if len(rows) > 1:
        peaks = [row.get("device_peak_mib", row["peak_mib"]) for row in rows]
        slope, base = np.polyfit(lengths, peaks, 1)
        first = rows[0]["model_flops"] / rows[0]["median_s"]
        growth = [row["median_s"] * first / row["model_flops"] for row in rows]
        figures |= {"mib_a_position": slope, "mib_at_0": base, "time_over_flops": growth}
        say(f"peak MiB = {base:,.0f} + {slope:.3f} x length; time over FLOPs: {', '.join(f'{g:.2f}' for g in growth)}")
    report(lines, figures)


if __name__ == "__main__":
    entry.run(main)
