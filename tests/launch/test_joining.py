"""How an entry point joins other processes, and how it ends."""

import os
import signal
import subprocess
import sys

import pytest

from mosaics_jax.runtime.processes import Processes
from tests.experiments.entries import ROOT, refused


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"coordinator": "host"}, "--coordinator=host is not HOST:PORT"),
        ({"coordinator": "host:port"}, "is not HOST:PORT"),
        ({"coordinator": "host:1234"}, "got 0 and -1"),
        ({"coordinator": "host:1234", "num_processes": 2}, "got 2 and -1"),
        ({"coordinator": "host:1234", "num_processes": 2, "process_id": 2}, "got 2 and 2"),
        ({"num_processes": 2}, "need --coordinator=HOST:PORT"),
        ({"process_id": 0}, "need --coordinator=HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together(given, says):
    with pytest.raises(ValueError, match=says):
        Processes(**given)


def test_distributed_outside_of_a_cluster_is_refused(tmp_path):
    line = refused("babistories", f"--workdir={tmp_path}", "--distributed")
    assert line.startswith("error: --distributed: this is no TPU pod, GKE job or Slurm job")


WAITING = (
    "import time; from experiments import entry; entry.run(lambda _: print('ready', flush=True) or time.sleep(60))"
)


@pytest.mark.parametrize(
    ("number", "status", "says"),
    [
        (signal.SIGTERM, 75, "SIGTERM: stopped; the same command goes on from what is there"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_outside_of_training(number, status, says):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()) == (status, [says])
