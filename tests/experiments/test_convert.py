"""Converting checkpoint files, in both directions; where it matters, as a user calls it."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags

from experiments import convert
from mosaics_jax.convert import from_torch
from mosaics_jax.errors import UserError
from mosaics_jax.training import load_config, load_params

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """``run(flag=value, ...)``: the entry point's main with these flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def call(**values):
        for name in ("from_torch", "out", "to_torch", "checkpoint", "tokenizer", "pre_ln", "n_head"):
            monkeypatch.setattr(flags.FLAGS[name], "value", values.pop(name, None))
        assert not values
        convert.main([])

    return call


@pytest.fixture
def checkpoint(tmp_path):
    """A small GPT of the authors' code as an .npz file: the path, and the arrays."""
    with np.load(ROOT / "tests" / "golden" / "nano_gpt.npz") as file:
        arrays = {name.removeprefix("param/"): file[name] for name in file if name.startswith("param/")}
    np.savez(tmp_path / "theirs.npz", **arrays)
    return tmp_path / "theirs.npz", arrays


def test_there_and_back(run, checkpoint, tmp_path, capsys):
    path, arrays = checkpoint
    run(from_torch=str(path), out=str(tmp_path / "run"), n_head=4)
    assert "gpt2 of 3 blocks, 32 wide, 41,728 parameters" in capsys.readouterr().out
    assert load_config(tmp_path / "run")["task"]["model"]["n_head"] == 4
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "run"), from_torch(arrays, n_head=4)[1])
    run(to_torch=str(tmp_path / "back.npz"), checkpoint=str(tmp_path / "run"))
    with np.load(tmp_path / "back.npz") as back:
        assert set(back) == set(arrays)
        assert all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)
    before = sorted(tmp_path.rglob("*"))
    for call, message in (
        ({"from_torch": str(path), "out": str(tmp_path / "run")}, "run already exists"),
        ({"to_torch": str(tmp_path / "back.npz"), "checkpoint": str(tmp_path / "run")}, "back.npz already exists"),
        (
            {"to_torch": str(tmp_path / "no" / "x.npz"), "checkpoint": str(tmp_path / "run")},
            "cannot write .*x.npz: No such",
        ),
        ({"to_torch": str(tmp_path / "x.npz"), "checkpoint": str(tmp_path)[:-1]}, "is not a directory"),
    ):
        with pytest.raises(UserError, match=message):
            run(**call)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_refused(run, checkpoint, tmp_path):
    path, _ = checkpoint
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "objects.npz", weights=np.array([{}], dtype=object))
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "run")
    for call, message in (
        ({}, "give --from_torch=FILE --out=DIR, or"),
        ({"from_torch": str(path)}, "give --from_torch=FILE --out=DIR, or"),
        ({"from_torch": str(tmp_path / "none.npz"), "out": out}, "none.npz is not a file"),
        ({"from_torch": str(tmp_path / "text.npz"), "out": out}, "text.npz cannot be read as a checkpoint"),
        ({"from_torch": str(tmp_path / "objects.npz"), "out": out}, "objects.npz cannot be read as a checkpoint"),
        ({"from_torch": str(tmp_path / "other.npz"), "out": out}, "it holds weights"),
        ({"from_torch": str(path), "out": out}, "no multiple of 64: give n_head"),
    ):
        with pytest.raises(UserError, match=message):
            run(**call)
    assert sorted(tmp_path.iterdir()) == before


def test_without_pytorch_a_pt_file_is_one_line(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"")
    # Python runs this file at its start; whether PyTorch is installed or not, importing it now fails.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    command = [sys.executable, "-m", "experiments.convert", "--from_torch=ckpt.pt", "--out=run"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    assert result.stderr.startswith("error: .pt files need PyTorch") and result.stderr.count("\n") == 1
