"""A run killed again and again ends where the uninterrupted run ends, bit for bit."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mosaics_jax.training import train
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.stopping import StopSignals

PROGRAM = pathlib.Path(__file__).with_name("tiny.py")


@pytest.fixture
def start(tmp_path, request):
    """Starts the tiny run in a process of its own; gives it back."""
    processes = []

    def run(workdir):
        cache = request.config.rootpath / ".cache" / "jax"
        command = [sys.executable, "-u", PROGRAM, workdir, "--cache", cache]
        environment = {"PYTHONPATH": str(request.config.rootpath), "PATH": "", "HOME": str(tmp_path)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(process, text):
    """Reads the output up to a line that holds ``text``, and gives it back."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"no {text!r} before the end: {process.stderr.read()}")


def kill(process, number=signal.SIGKILL):
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_killed_and_restarted_ends_the_same(tiny, finished, start, tmp_path):
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"

    # SIGKILL while a checkpoint is being written.
    process = start(workdir)
    while not ((checkpoints / "5").exists() and list(checkpoints.glob("*.orbax-checkpoint-tmp"))):
        assert process.poll() is None
        time.sleep(0.001)
    assert kill(process)[0] == -signal.SIGKILL

    # SIGKILL at a moment that nobody chose, some steps on.
    process = start(workdir)
    wait_for(process, "restored step")
    wait_for(process, "a step")
    time.sleep(random.uniform(0, 0.5))
    kill(process)

    # SIGTERM: saves, and exits with a status of its own.
    process = start(workdir)
    wait_for(process, "a step")
    status, errors = kill(process, signal.SIGTERM)
    assert status == 75, errors
    stopped = int(errors.split("SIGTERM: stopped after step ")[1].split(",")[0])
    assert max(int(path.name) for path in checkpoints.iterdir()) == stopped < 40

    result = train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    jax.tree.map(np.testing.assert_array_equal, result.params, finished[1].params)
    assert result.train_loss == finished[1].train_loss
    assert result.eval_metrics == finished[1].eval_metrics

    def losses(directory, kind):
        return [(record["step"], record["loss"]) for record in read_metrics(directory) if record["kind"] == kind]

    assert losses(workdir, "train") == losses(finished[0], "train")
    assert losses(workdir, "eval") == losses(finished[0], "eval")


def test_a_second_signal_is_not_held_back():
    with StopSignals() as signals:
        assert signals.stop_after(1) is None
        signal.raise_signal(signal.SIGINT)
        assert signals.stop_after(2) == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
