"""Two processes train together until a signal to one stops both; one process resumes, then two: the run of one."""

import dataclasses
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from mosaics_jax.training import Interrupted, load_params, train
from mosaics_jax.training.metrics import read_metrics

PROGRAM = pathlib.Path(__file__).with_name("in_two_processes.py")


@pytest.fixture
def start(tmp_path, request):
    """A function that starts the two processes and returns them."""
    processes = []
    root = request.config.rootpath

    def run(workdir):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pair = [
            subprocess.Popen(
                [sys.executable, "-u", PROGRAM, str(process), str(port), workdir, root / ".cache" / "jax"],
                env={"PYTHONPATH": str(root), "PATH": ""},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=tmp_path,
            )
            for process in range(2)
        ]
        processes.extend(pair)
        return pair

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def finish(processes):
    """Exit statuses and outputs."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def test_two_processes_then_one_then_two_end_the_same(start, finished, tiny, send_sigterm, tmp_path):
    workdir = tmp_path / "run"
    first, second = start(workdir)
    for line in first.stdout:
        if "a step" in line:
            break
    second.send_signal(signal.SIGTERM)
    statuses, outputs = finish([first, second])
    assert statuses == [75, 75], outputs
    (step,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert 0 < step < 38

    def stop(params):
        send_sigterm()
        return "one step alone"

    with pytest.raises(Interrupted, match=f"stopped after step {step + 1},"):
        train(workdir, dataclasses.replace(tiny.LOOP, sample_every=1), tiny.OPTIMIZER, tiny.make_task(sample=stop))
    alone = load_params(workdir)
    # A damaged checkpoint, of which each process verifies a part: both pass over it.
    newer = shutil.copytree(workdir / "checkpoints" / str(step + 1), workdir / "checkpoints" / "39")
    damaged = max((newer / "optimizer").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

    statuses, outputs = finish(start(workdir))
    assert statuses == [0, 0], outputs
    assert f"restored step {step + 1} of 40" in outputs[0]
    assert [output.count("checkpoints/39 is damaged") for output in outputs] == [1, 1]
    assert sum("is not what was written" in output for output in outputs) == 1  # it was read once
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["39"]
    assert "restored" not in outputs[1]  # the first process speaks for all
    for params, name in ((alone, "restored.npz"), (load_params(workdir), "final.npz")):
        with np.load(workdir / name) as noted:
            jax.tree.map(np.testing.assert_array_equal, params, dict(noted))
    losses, undisturbed = (
        [record["loss"] for record in read_metrics(directory) if record["kind"] == "train"]
        for directory in (workdir, finished[0])
    )
    np.testing.assert_allclose(losses, undisturbed, rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6),
        load_params(workdir),
        finished[1].params,
    )
