"""On 8 virtual devices: the same losses as on one under every mesh, and checkpoints that move between meshes."""

import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mosaics_jax.training import load_params, train
from mosaics_jax.training.metrics import read_metrics

PROGRAM = pathlib.Path(__file__).with_name("on_eight_devices.py")
MESHES = ("data:8", "fsdp:8", "data:2,fsdp:2,tensor:-1")


def losses(workdir):
    return np.array([record["loss"] for record in read_metrics(workdir) if record["kind"] == "train"])


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory, request):
    """A directory with a run for each mesh; the run of ``fsdp:8`` began on one device and was resumed at step 30."""
    directory = tmp_path_factory.mktemp("meshes")
    shutil.copytree(finished[0], directory / "fsdp:8")
    for step in ("35", "40"):
        shutil.rmtree(directory / "fsdp:8" / "checkpoints" / step)
    root = request.config.rootpath
    command = [sys.executable, "-W", "error", PROGRAM, directory, root / ".cache" / "jax", *MESHES]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "restored step 30 of 40" in done.stdout
    assert "hidden     8 x 16  float32    128  fsdp, tensor" in done.stdout
    assert "8 to 4 to 1 to 8: every bit is kept" in done.stdout
    return directory


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_are_those_of_one_device(mesh, runs, finished):
    np.testing.assert_allclose(losses(runs / mesh), losses(finished[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mesh", MESHES)
def test_saved_on_eight_devices_loaded_on_one(mesh, runs):
    with np.load(runs / mesh / "final.npz") as final:
        jax.tree.map(np.testing.assert_array_equal, load_params(runs / mesh), dict(final))


def test_saved_on_eight_devices_goes_on_on_one(runs, finished, tiny, tmp_path):
    workdir = shutil.copytree(runs / MESHES[-1], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "40")
    result = train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    np.testing.assert_allclose(losses(workdir), losses(finished[0]), rtol=1e-6, atol=1e-6)
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6), result.params, finished[1].params
    )
