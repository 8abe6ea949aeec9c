"""What each part of a mosaic contributes on RegBench and MQAR, and what a short convolution does for its rivals.

    python -m experiments.ablations --workdir=runs/ablations --seeds=0,1

There is one run for each variant, benchmark and seed, with the settings of `--regbench_base` (by default the published
recipe for 100 automata: 2 layers) or `--mqar_base`. A command that was stopped or killed goes on where it was; more
variants or seeds may follow in the same directory. WORKDIR/results.md holds the table: means over seeds, on held-out
data, and the seconds of a run. `--norun` makes it from the results that are there.

A feed-forward layer has 8 C^2 weights, a persistent memory 2 C^2 + 2 C M: as many with M = 3 C slots, which is the
memory to compare the layer with.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import entry
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from experiments.sweeps.grid import Job, make_jobs, read_base
from experiments.sweeps.runner import run_jobs
from experiments.sweeps.summaries import SUMMARIES
from experiments.sweeps.variants import table_of_variants
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned, markdown
from mosaics_jax.runtime.workdir import locked
from mosaics_jax.training.progress import say

VARIANTS = {
    "mosaic": "model=mosaic",
    "leaky average fixed": "model=mosaic; leaky_average=fixed",
    "leaky average off": "model=mosaic; leaky_average=off",
    "no peek": "model=mosaic; peek=false",
    "asymmetric": "model=mosaic; asymmetric=true",
    "unnormalized keys": "model=mosaic; normalized_keys=false",
    "1 layer": "model=mosaic; n_layer=1",
    "4 layers": "model=mosaic; n_layer=4",
    "persistent memory of 3 C slots": "model=mosaic; pmem_size={slots}",
    "feed-forward": "model=mosaic; feed_forward=true",
    "linear transformer": "model=linear_transformer",
    "linear transformer with convolution": "model=linear_transformer; short_convolution=4",
    "mamba": "model=mamba",
    "mamba without convolution": "model=mamba; mamba_convolution=0",
}

BENCHMARKS = flags.DEFINE_list("benchmarks", list(SUMMARIES), f"what is run on: {', '.join(SUMMARIES)}")
CHOSEN = flags.DEFINE_list("variants", list(VARIANTS), f"what is run, and in the table: {', '.join(VARIANTS)}")
SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds of initialisation and dropout: a run for each")
BASES = {
    "regbench": flags.DEFINE_string(
        "regbench_base", "experiments/flags/regbench_100.flags", "flagfile with the settings of runs on RegBench"
    ),
    "mqar": flags.DEFINE_string(
        "mqar_base", "experiments/flags/mqar_cpu.flags", "flagfile with the settings of runs on MQAR"
    ),
}
AT_ONCE = flags.DEFINE_integer("at_once", 1, "runs at a time, each on its share of the CPU's cores", lower_bound=1)
RUN = flags.DEFINE_bool("run", True, "make the runs; --norun only makes the table of what is there")
define_workdir_flag()


def main(argv: list[str]) -> int:
    workdir = workdir_from_flags()
    check_names("benchmarks", BENCHMARKS.value, list(SUMMARIES))
    check_names("variants", CHOSEN.value, list(VARIANTS))
    jobs = {benchmark: jobs_of(benchmark, workdir / benchmark) for benchmark in BENCHMARKS.value}
    table_of_variants(jobs)  # refuses results of other settings before anything is run
    failed: list[str] = []
    if RUN.value:
        with locked(workdir):
            for benchmark, variants in jobs.items():
                say(f"\n{benchmark}")
                arguments = [f"--cache_dir={workdir / 'cache'}"] if benchmark == "regbench" else []
                every = [job for of_variant in variants.values() for job in of_variant]
                describe = SUMMARIES[benchmark].describe
                failed += run_jobs(every, arguments, AT_ONCE.value, describe, workdir / "cache" / "jax")
    rows = table_of_variants(jobs)
    if not any(any(cells) for _, *cells in rows[1:]) and not failed:
        raise UserError(f"{workdir} holds no results of {' or '.join(jobs)}")
    staging.write_file(workdir / "results.md", markdown(rows).encode())
    say(f"\n{aligned(rows)}")
    if failed:
        say(f"{len(failed)} failed: {' '.join(failed)}")
    return 1 if failed else 0


def check_names(flag: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError unless there are given names and all are known."""
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise UserError(f"--{flag}={','.join(given)}: choose from {', '.join(known)}")


def jobs_of(benchmark: str, workdir: Path) -> dict[str, list[Job]]:
    """The runs of each chosen variant on a benchmark, one for each seed. Raises UserError on a base without a width."""
    flag, path = BASES[benchmark].name, BASES[benchmark].value
    base = read_base(path, flag)
    try:
        slots = 3 * int(base["n_embd"])
    except (KeyError, ValueError):
        raise UserError(f"--{flag}={path} must give the width of the models: --n_embd=NUMBER") from None
    return {
        variant: make_jobs(
            benchmark, [f"{VARIANTS[variant]}; seed={','.join(SEEDS.value)}".format(slots=slots)], base, workdir
        )
        for variant in CHOSEN.value
    }


if __name__ == "__main__":
    entry.run(main)
