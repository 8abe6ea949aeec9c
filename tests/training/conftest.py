"""The tiny task, and one uninterrupted run of it that the other tests compare with."""

import importlib.util
import pathlib
import signal
import time

import pytest

from mosaics_jax.runtime.stopping import StopSignals
from mosaics_jax.training import loop, train


def _load_tiny():
    spec = importlib.util.spec_from_file_location("tiny", pathlib.Path(__file__).with_name("tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    return _load_tiny()


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """(work directory, TrainResult) of a run that nothing interrupted; tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())


@pytest.fixture
def send_sigterm(monkeypatch):
    """A function that sends SIGTERM to the run in this process, and returns when the run has recorded it."""
    made = []

    def make():
        made.append(StopSignals())
        return made[-1]

    def send():
        signal.raise_signal(signal.SIGTERM)
        while not made[-1].received:
            time.sleep(0.001)

    monkeypatch.setattr(loop, "StopSignals", make)
    return send
