"""A run that is killed repeatedly ends with the parameters of the uninterrupted run, bit for bit."""

import dataclasses
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.stopping import StopSignals
from mosaics_jax.training import Interrupted, loop, train
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.tensorboard import read_points

PROGRAM = pathlib.Path(__file__).with_name("tiny.py")


@pytest.fixture
def start(tmp_path, request):
    """A function that starts the tiny run in a process of its own and returns it."""
    processes = []

    def run(workdir):
        cache = request.config.rootpath / ".cache" / "jax"
        command = [sys.executable, "-u", PROGRAM, workdir, "--cache", cache]
        # The same flags for XLA: programs compiled in other ways differ in the last bit.
        flags = os.environ.get("XLA_FLAGS", "")
        environment = {
            "PYTHONPATH": str(request.config.rootpath),
            "PATH": "",
            "HOME": str(tmp_path),
            "XLA_FLAGS": flags,
        }
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
    """Reads the output up to a line that contains ``text``, and returns the line."""
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

    def shown(directory):
        return {tag: line for tag, line in read_points(directory / "tensorboard").items() if tag != "train/seconds"}

    assert shown(workdir) == shown(finished[0])


STUCK = """
import ctypes
from mosaics_jax.runtime.stopping import StopSignals
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with StopSignals():
    print("stuck", flush=True)
    lock(mutex), lock(mutex)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_even_what_is_stuck_outside_of_python(number, request):
    command = [sys.executable, "-c", STUCK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=request.config.rootpath)
    try:
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
        process.communicate()


def test_signals_are_noted_and_handlers_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals() as signals:
        assert signals.requested() is None
        signal.raise_signal(signal.SIGINT)
        while not signals.received:
            time.sleep(0.001)
        assert signals.requested() == "SIGINT"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_nobody_asked_for_is_passed_on():
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGINT)


def test_a_signal_in_the_last_step_stops_what_comes_after_the_run(tiny, send_sigterm, tmp_path):
    loop_config = dataclasses.replace(tiny.LOOP, steps=3, sample_every=0)

    def sample(params):
        send_sigterm()
        return "the end"

    with pytest.raises(Interrupted, match="SIGTERM: stopped after step 3, which is saved"):
        train(tmp_path, loop_config, tiny.OPTIMIZER, tiny.make_task(sample=sample))
    assert train(tmp_path, loop_config, tiny.OPTIMIZER, tiny.make_task(sample=sample)).step == 3


def test_a_work_directory_that_a_process_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "VISIBLE_SECONDS", 0)
    with pytest.raises(UserError, match=r"process 0 does not see the directory .* that all hosts share"):
        loop.check_shared(tmp_path / "elsewhere")
