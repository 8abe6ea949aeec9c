"""MQAR from its command line."""

import json

import numpy as np
import pytest

from mosaics_jax.training.metrics import read_metrics
from tests.experiments.entries import ROOT, refused, run

SMOKE = ROOT / "experiments" / "flags" / "mqar_smoke.flags"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("mqar")
    # Enough to learn the task.
    learning = [
        "--num_train=4000",
        "--batch_size=64",
        "--n_embd=32",
        "--steps=150",
        "--eval_every=50",
        "--log_every=50",
    ]
    learning += ["--variant=nano", "--learning_rate=1e-2", "--checkpoint_every=0"]
    done = run("mqar", f"--flagfile={SMOKE}", f"--workdir={workdir}", *learning)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_mosaic_learns_to_recall(finished):
    workdir, done = finished
    result = json.loads((workdir / "results.json").read_text())
    expected = {"model": "mosaic", "n_embd": 32, "num_pairs": 2, "context_length": 16, "num_train": 4000, "steps": 150}
    assert result.items() >= expected.items()
    assert (result["model_config"]["variant"], result["data_config"]["split"]["batch_size"]) == ("nano", 64)
    # 10 % of the steps are warm-up; the learning rate ends at 0.
    assert result["optimizer_config"].items() >= {"learning_rate": 0.01, "warmup_steps": 15}.items()
    assert result["optimizer_config"]["min_learning_rate"] == 0.0
    assert result["accuracy"] > 0.9 and result["validation_accuracy"] > 0.9
    assert result["accuracy"] * 48 == pytest.approx(round(result["accuracy"] * 48))  # of 24 sequences, 2 queries each
    assert f"{result['accuracy']:.3f}" in done.stdout
    first = next(record for record in read_metrics(workdir) if record["kind"] == "train")
    assert first["loss"] == pytest.approx(np.log(64), abs=0.4)  # the mean over queries, not over positions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir="], "--workdir is needed"),
        (["--num_pairs=5"], "must be even and at least 4 num_pairs"),
        (["--num_test=0"], "num_test=0 must be at least 1"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, arguments, message):
    assert message in refused("mqar", f"--flagfile={SMOKE}", f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()
