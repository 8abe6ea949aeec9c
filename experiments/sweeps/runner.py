"""Many runs, each in a process and a work directory of its own."""

import collections
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.sweeps.grid import Job
from mosaics_jax.errors import UserError
from mosaics_jax.runtime.exits import FLAGS_ERROR, USER_ERROR_STATUS
from mosaics_jax.training.progress import duration, say

LOG_NAME = "log.txt"
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0  # time for a run to save itself


def run_jobs(
    jobs: Sequence[Job], arguments: Sequence[str], at_once: int, describe: Callable[[dict[str, Any]], str], cache: Path
) -> list[str]:
    """Runs the jobs that are not finished, ``at_once`` at a time, and returns the names of those that failed.

    ``arguments``: further flags of every run. ``describe``: results in a few words, for the line that is printed when a
    run ends. ``cache``: directory for compiled programs, which later runs of the same shapes load. Runs at the same
    time share out the CPU's cores. Whatever ends this function also stops the runs, which save themselves first.
    """
    waiting = collections.deque(job for job in jobs if job.finished() is None)
    progress = _Progress(len(jobs), len(jobs) - len(waiting), at_once)
    environment = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ}
    if at_once > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share an accelerator's memory
    running: dict[subprocess.Popen[bytes], tuple[Job, float, set[int]]] = {}
    shares = core_shares(at_once)
    failed: list[str] = []
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
                results = job.finished() if process.returncode == 0 else None
                outcome = describe(results) if results else f"failed: {_reason(job, process.returncode)}"
                if results is None:
                    failed.append(job.name)
                remaining = [*waiting, *(other for other, *_ in running.values())]
                progress.ended(job, outcome, time.monotonic() - began, results is not None, remaining)
    finally:
        _stop(running)
    return failed


class _Progress:
    """Prints a line when a run ends, with an estimate of the time that is left."""

    def __init__(self, jobs: int, finished_before: int, at_once: int):
        self._jobs, self._ended, self._at_once = jobs, finished_before, at_once
        self._seconds = self._cost = 0.0  # of the runs that have succeeded
        say(f"runs: {jobs}, finished before: {finished_before}")

    def ended(self, job: Job, outcome: str, seconds: float, succeeded: bool, remaining: Sequence[Job]) -> None:
        """Reports a run that took ``seconds``; ``remaining`` are waiting or running."""
        self._ended += 1
        if succeeded:
            self._seconds, self._cost = self._seconds + seconds, self._cost + job.cost
        to_do = sum(other.cost for other in remaining)
        estimate = self._seconds / self._cost * to_do / self._at_once if self._cost else 0.0
        left = f"; {duration(estimate)} left" if self._cost and to_do else ""
        say(f"{self._ended}/{self._jobs}  {job.name}: {outcome}, in {duration(seconds)}{left}")


def core_shares(at_once: int) -> list[set[int]]:
    """A set of cores for each of the runs at the same time; empty sets, meaning all, where the system has no affinity.

    Runs that share all cores wait for each other's threads: two runs on two cores took 1.6 times as long as with a core
    each.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * at_once
    cores = sorted(os.sched_getaffinity(0))
    count = min(at_once, len(cores))  # with more runs than cores, some runs share one
    ends = [i * len(cores) // count for i in range(count + 1)]
    return [set(cores[ends[i % count] : ends[i % count + 1]]) for i in range(at_once)]


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Restricts processes that are started inside the context to these cores; an empty set restricts nothing."""
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
    """Starts a run; its output goes to log.txt in its work directory."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    settings = [f"--{name}={value}" for name, value in job.settings.items()]
    command = [sys.executable, "-m", "experiments.sweeps.child", job.experiment, *settings, *arguments]
    with (job.workdir / LOG_NAME).open("ab") as log:
        # A session of its own keeps Ctrl-C from the run: the sweep alone receives it, and then stops its runs.
        return subprocess.Popen(
            [*command, f"--workdir={job.workdir}"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _ended(running: dict[subprocess.Popen[bytes], Any]) -> Iterator[subprocess.Popen[bytes]]:
    """The processes that have ended; waits until there is one."""
    while not (ended := [process for process in running if process.poll() is not None]):
        time.sleep(POLL_SECONDS)
    yield from ended


def _reason(job: Job, status: int) -> str:
    """Why a run failed, from the end of its log. Raises UserError if every run of the sweep would fail likewise."""
    lines = [line for line in (job.workdir / LOG_NAME).read_text(errors="replace").splitlines() if line.strip()]
    if status == USER_ERROR_STATUS and lines and lines[-1].startswith(f"error: {FLAGS_ERROR}"):
        raise UserError(f"{job.name}: {lines[-1].removeprefix('error: ')}")
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    reason = [*lines, *errors][-1].removeprefix("error: ") if lines else "nothing was printed"
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
