"""RegBench or MQAR over a grid of models, sizes, seeds and hyper-parameters: v1 figure 9, MQAR's figure 2.

    python -m experiments.sweep --experiment=regbench --base=experiments/flags/regbench_100.flags \
        --grid="model=mosaic,transformer,mamba; num_train=100,500,1000,2500; seed=0,1" --workdir=runs/figure9
    python -m experiments.sweep --experiment=mqar --base=experiments/flags/mqar_64.flags \
        --grid="model=mosaic,transformer,mamba; n_embd=64,128; learning_rate=5e-4,2e-3" --workdir=runs/figure2

The grid may set any flag of the experiment that one of its models has; `--base` has those of all runs. Each run has a
directory of its own in the work directory. A sweep that was stopped or killed goes on when the same command is given
again; a larger grid may follow in the same directory. At the end, and alone with `--norun`, all results that lie there
become figure.png, figure.pdf and results.md. At each of its points a curve shows the hyper-parameters of best
validation accuracy, as the mean over seeds.
"""

from absl import flags

from experiments import entry
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from experiments.sweeps.grid import make_jobs, read_base
from experiments.sweeps.runner import run_jobs
from experiments.sweeps.summaries import SUMMARIES, read_all, report
from mosaics_jax.errors import UserError
from mosaics_jax.runtime.workdir import locked
from mosaics_jax.training.progress import say

EXPERIMENT = flags.DEFINE_enum("experiment", "regbench", list(SUMMARIES), "what is run")
GRID = flags.DEFINE_multi_string(
    "grid", [], 'runs to make: "model=mosaic,mamba; num_train=100,500", all combinations; a:b=1:2,3:4 ties two flags'
)
BASE = flags.DEFINE_string("base", "", "flagfile with settings of all runs; the grid may set them otherwise")
AT_ONCE = flags.DEFINE_integer("at_once", 1, "runs at a time, each on its share of the CPU's cores", lower_bound=1)
RUN = flags.DEFINE_bool("run", True, "make the runs; --norun only draws what is there")
define_workdir_flag()


def main(argv: list[str]) -> int:
    workdir = workdir_from_flags()
    if RUN.value and not GRID.value:
        raise UserError('--grid is needed, e.g. --grid="model=mosaic,transformer; num_train=100,500" (or --norun)')
    summary = SUMMARIES[EXPERIMENT.value]
    failed: list[str] = []
    if RUN.value:
        jobs = make_jobs(EXPERIMENT.value, GRID.value, read_base(BASE.value), workdir)
        read_all(workdir, EXPERIMENT.value)  # refuses results of another version before anything is run
        arguments = [f"--cache_dir={workdir / 'cache'}"] if EXPERIMENT.value == "regbench" else []
        with locked(workdir):
            failed = run_jobs(jobs, arguments, AT_ONCE.value, summary.describe, workdir / "cache" / "jax")
    results = read_all(workdir, EXPERIMENT.value)
    if not results and not failed:
        raise UserError(f"{workdir} holds no results of {EXPERIMENT.value}")
    if results:
        say(report(results, summary, workdir))
    if failed:
        say(f"{len(failed)} failed: {' '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    entry.run(main)
