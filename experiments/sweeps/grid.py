"""Many runs of one experiment, each in a process and a work directory of its own."""

import collections
import contextlib
import dataclasses
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import results
from mosaics_jax.errors import UserError
from mosaics_jax.runtime.exits import FLAGS_ERROR, USER_ERROR_STATUS
from mosaics_jax.training.progress import duration, say

LOG_NAME = "log.txt"
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0  # that a run gets to save itself
Settings = dict[str, str]  # flag -> value, as they are typed


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its experiment, its name and directory, all of its settings."""

    experiment: str
    name: str
    workdir: Path
    settings: Settings

    def finished(self) -> dict[str, Any] | None:
        """Its results, if it is finished. Raises UserError if others lie in its place."""
        found = results.read(self.workdir, self.experiment)
        if found is not None:
            different = [name for name, value in self.settings.items() if not same(value, found["settings"].get(name))]
            different += [name for name in found["settings"] if name not in self.settings]
            if different:
                raise UserError(
                    f"{self.workdir} holds results of other settings ({', '.join(different)}): "
                    "move it away, or choose another work directory"
                )
        return found

    @property
    def cost(self) -> float:
        """In proportion to its time, as far as its settings tell."""
        return _number(self.settings.get("num_train", "")) * _number(self.settings.get("epochs", ""))


def _number(text: str) -> float:
    return float(text) if text.isdecimal() else 1.0


def same(text: str, value: Any) -> bool:
    """Whether a flag's value is the one that was typed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text.lower() == str(value).lower()
    try:
        return float(text) == value
    except ValueError:
        return False


def parse_grid(text: str) -> list[Settings]:
    """All combinations of ``"model=mosaic,mamba; num_train=100,500"``; ``a:b=1:2,3:4`` ties two flags together.

    Raises UserError if it does not read so.
    """
    axes: list[list[Settings]] = []
    for axis in filter(None, map(str.strip, text.split(";"))):
        left, equals, right = axis.partition("=")
        names = [name.strip() for name in left.split(":")]
        values = [[part.strip() for part in value.split(":")] for value in right.split(",")]
        whole = all(len(value) == len(names) and all(value) for value in values)
        if not equals or not all(re.fullmatch(r"\w+", name) for name in names) or not whole:
            raise UserError(
                f"--grid: {axis!r} is not FLAG=VALUE,VALUE,... (or FLAG:FLAG=VALUE:VALUE,...); ; separates flags"
            )
        axes.append([dict(zip(names, value, strict=True)) for value in values])
    combinations = []
    for parts in itertools.product(*axes):
        combinations.append({name: value for part in parts for name, value in part.items()})
        if len(combinations[-1]) < sum(map(len, parts)):
            raise UserError(f"--grid={text!r} names a flag twice")
    return combinations


def read_base(flagfile: str, flag: str = "base") -> Settings:
    """The settings in a flagfile, those of its flagfiles included. Raises UserError, which names the ``flag``."""
    if not flagfile:
        return {}
    try:
        lines = flags.FLAGS.read_flags_from_files([f"--flagfile={flagfile}"])
    except flags.Error as error:
        raise UserError(f"--{flag}={flagfile} cannot be read ({error})") from None
    settings = {}
    for line in lines:
        name, equals, value = line.lstrip("-").partition("=")
        if not line.startswith("-") or not equals:
            raise UserError(f"--{flag}={flagfile}: write --NAME=VALUE instead of {line!r}")
        settings[name] = value
    return settings


def make_jobs(experiment: str, grids: Sequence[str], base: Settings, workdir: Path) -> list[Job]:
    """A job for each point of the grids, once if it is in two; a grid's settings outdo those of ``base``."""
    jobs: dict[str, Job] = {}
    for point in itertools.chain.from_iterable(map(parse_grid, grids)):
        if reserved := [name for name in point if name in results.PLACES]:
            raise UserError(f"--grid: {reserved[0]} is set for each run by the sweep; leave it out")
        model = [point["model"]] if "model" in point else []
        name = ",".join([*model, *(f"{name}={value}" for name, value in sorted(point.items()) if name != "model")])
        name = re.sub(r"[^\w.,=+-]", "_", name)
        jobs.setdefault(name, Job(experiment, name, workdir / name, {**base, **point}))
    return list(jobs.values())


def run_jobs(
    jobs: Sequence[Job], arguments: Sequence[str], at_once: int, describe: Callable[[dict[str, Any]], str], cache: Path
) -> list[str]:
    """Runs what is not finished, ``at_once`` jobs at a time; says a line when one ends. Names of those that failed.

    ``arguments``: further flags of every run. ``describe``: results in a few words. Compiled programs go to ``cache``,
    for the next run of the same shapes. Runs at a time share out the CPU's cores. Whatever ends this function ends the
    runs, which save themselves first.
    """
    waiting = collections.deque(job for job in jobs if job.finished() is None)
    say(f"runs: {len(jobs)}, finished before: {len(jobs) - len(waiting)}")
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ}
    if at_once > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share an accelerator's memory
    running: dict[subprocess.Popen[bytes], tuple[Job, float, set[int]]] = {}
    shares = core_shares(at_once)
    failed: list[str] = []
    seconds = done = 0.0
    ended = len(jobs) - len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                cores = shares.pop()
                with on_cores(cores):
                    process = start(job, arguments, environment)
                running[process] = job, time.monotonic(), cores
            for process in list(_ended(running)):
                job, began, cores = running.pop(process)
                shares.append(cores)
                ended += 1
                took = time.monotonic() - began
                found = job.finished() if process.returncode == 0 else None
                if found is None:
                    failed.append(job.name)
                    outcome = f"failed: {_reason(job, process.returncode)}"
                else:
                    seconds, done = seconds + took, done + job.cost
                    outcome = describe(found)
                to_do = sum(other.cost for other in [*waiting, *(other for other, *_ in running.values())])
                left = f"; {duration(seconds / done * to_do / at_once)} left" if done and to_do else ""
                say(f"{ended}/{len(jobs)}  {job.name}: {outcome}, in {duration(took)}{left}")
    finally:
        _stop(running)
    return failed


def core_shares(at_once: int) -> list[set[int]]:
    """Cores for each of the runs at a time; empty sets, for all, where the system cannot tell.

    Runs that have all cores wait for each other's threads: two on two took 1.6 times as long as with a core each.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * at_once
    cores = sorted(os.sched_getaffinity(0))
    count = min(at_once, len(cores))  # more runs than cores: some share one
    ends = [i * len(cores) // count for i in range(count + 1)]
    return [set(cores[ends[i % count] : ends[i % count + 1]]) for i in range(at_once)]


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """A process that is started inside runs on these cores alone."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start(job: Job, arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.workdir.mkdir(parents=True, exist_ok=True)
    settings = [f"--{name}={value}" for name, value in job.settings.items()]
    command = [sys.executable, "-m", "experiments.sweeps.child", job.experiment, *settings, *arguments]
    with (job.workdir / LOG_NAME).open("ab") as log:
        # In a session of its own, so that Ctrl-C reaches the sweep alone, which tells its runs.
        return subprocess.Popen(
            [*command, f"--workdir={job.workdir}"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _ended(running: dict[subprocess.Popen[bytes], Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Those that have ended; waits until there is one."""
    while not (ended := [process for process in running if process.poll() is not None]):
        time.sleep(POLL_SECONDS)
    yield from ended


def _reason(job: Job, status: int) -> str:
    """Why a run failed, from the end of its log. Raises UserError if no run of the sweep can do better."""
    lines = [line for line in (job.workdir / LOG_NAME).read_text(errors="replace").splitlines() if line.strip()]
    if status == USER_ERROR_STATUS and lines and lines[-1].startswith(f"error: {FLAGS_ERROR}"):
        raise UserError(f"{job.name}: {lines[-1].removeprefix('error: ')}")
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    reason = [*lines, *errors][-1].removeprefix("error: ") if lines else "nothing was said"
    return f"{reason} (status {status}; {job.workdir / LOG_NAME})"


def _stop(running: dict[subprocess.Popen[bytes], Any]) -> None:
    for process in running:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
