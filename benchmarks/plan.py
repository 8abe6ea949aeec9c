"""Plans of training steps for chips that are not here: makes the table in benchmarks/results/plan.md.

    python -m benchmarks.plan [--only=12,1500m] [--out=benchmarks/results]

Each plan is `experiments.plan` with the flagfile experiments/flags/plan_NAME.flags, in a process of its own: minutes on
a CPU core. The numbers of each are kept beside the table, which is rebuilt from all that are there.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags

from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("12", "12_gpu", "1500m", "8b")
ONLY = flags.DEFINE_list("only", list(NAMES), "which plans to make; empty: none, the table alone")
OUT = flags.DEFINE_string("out", str(ROOT / "benchmarks" / "results"), "directory for the table and the numbers")
GIB = 2**30


def main(argv: list[str]) -> None:
    out = pathlib.Path(OUT.value)
    (out / "plan").mkdir(parents=True, exist_ok=True)
    for name in ONLY.value:
        if name not in NAMES:
            raise UserError(f"--only={name}: the plans are {', '.join(NAMES)}")
        flagfile = ROOT / "experiments" / "flags" / f"plan_{name}.flags"
        command = [sys.executable, "-m", "experiments.plan", f"--flagfile={flagfile}"]
        done = subprocess.run([*command, f"--json={out / 'plan' / name}.json"], cwd=ROOT)
        if done.returncode:
            raise UserError(f"the plan of {name} failed, with status {done.returncode}")
    paths = {name: out / "plan" / f"{name}.json" for name in NAMES}
    plans = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    staging.write_file(out / "plan.md", table(plans).encode())
    print(table(plans))


def table(plans: dict) -> str:
    """The plans as Markdown."""
    lines = [
        "# Plans: one training step, compiled for chips that were not there",
        "",
        "Made by `python -m benchmarks.plan`. Nothing here was run: memory and what is sent are read from the program",
        "that XLA compiled; times are bounds. Products are assumed at the given share of the peak, memory and links at",
        "their specified rates. A step takes at least the largest of the three times; their sum if nothing overlaps.",
        "",
        "| plan | chips, mesh | parameters | tokens a step | memory a chip | model FLOPs a step | sent by a chip "
        "| products / memory / links, s | at the largest |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, plan in plans.items():
        mesh = ",".join(f"{axis}:{size}" for axis, size in plan["mesh"].items())
        sent = ", ".join(f"{kind} {c['bytes'] / GIB:.2f} GiB" for kind, c in sorted(plan["collectives"].items()))
        seconds = plan["seconds"]
        cells = [
            f"`plan_{name}`",
            f"{plan['topology']}, {mesh}",
            f"{plan['parameters']:,}",
            f"{plan['tokens']:,}",
            f"{sum(plan['memory'].values()) / GIB:.2f} of {plan['hbm'] / GIB:.0f} GiB",
            f"{plan['model_flops']:.3e}",
            sent,
            " / ".join(f"{seconds[part]:.3g}" for part in ("products", "memory", "links"))
            + f" (at {plan['utilisation']:.0%})",
            f"{plan['tokens'] / max(seconds.values()):,.0f} tokens/s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    entry.run(main)
