"""Runs that an earlier version made, resumed by the same commands: they go on with the metrics that it recorded."""

import json
import shutil
import tarfile

import pytest

from mosaics_jax.training.metrics import read_metrics
from tests.experiments.entries import ROOT, run_in

ARCHIVE = ROOT / "tests" / "checkpoints" / "format_2.tar.gz"
FLAGS = ROOT / "experiments" / "flags"
LANGUAGE = (
    *("--n_layer=2", "--n_head=2", "--n_embd=16", "--context_length=32", "--batch_size=4"),
    *("--vocab_size=320", "--steps=8", "--warmup_steps=2", "--eval_every=2", "--eval_tokens=512"),
    *("--checkpoint_every=2", "--keep_checkpoints=9", "--log_every=2", "--samples=1"),
    *("--train_files=train.txt", "--eval_files=valid.txt", "--workdir=babistories"),
)
# Run -> experiment, arguments, last step. All were made with --pmem_size=8; a model that lacks it refuses it now.
RUNS = {
    "babistories/mosaic": ("babistories", ("--model=mosaic", "--pmem_size=8", *LANGUAGE), 8),
    "babistories/gpt2": ("babistories", ("--model=gpt2", *LANGUAGE), 8),
    "regbench_mosaic": (
        "regbench",
        (
            *(f"--flagfile={FLAGS / 'regbench_smoke.flags'}", "--n_embd=16", "--pmem_size=8", "--model=mosaic"),
            *("--keep_checkpoints=9", "--workdir=regbench_mosaic"),
        ),
        6,
    ),
    "mqar_mamba": (
        "mqar",
        (f"--flagfile={FLAGS / 'mqar_smoke.flags'}", "--model=mamba", "--keep_checkpoints=9", "--workdir=mqar_mamba"),
        6,
    ),
}
CLOCK = ("time", "seconds", "tokens_per_s")  # numbers that depend on the clock


@pytest.fixture
def old_runs(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def metrics(run):
    """The numbers in each record of training and evaluation, but those of the clock, by kind and step."""
    return {
        (record["kind"], record["step"]): {
            name: value for name, value in record.items() if isinstance(value, int | float) and name not in CLOCK
        }
        for record in read_metrics(run)
        if record["kind"] in ("train", "eval")
    }


@pytest.mark.parametrize("name", RUNS)
def test_the_same_command_goes_on(name, old_runs):
    experiment, arguments, last = RUNS[name]
    directory = old_runs / name
    recorded = metrics(directory)
    shutil.rmtree(directory / "checkpoints" / str(last))
    shutil.rmtree(directory / "best" / str(last), ignore_errors=True)
    before = {path.name for path in (directory / "checkpoints").iterdir()}
    (directory / "results.json").unlink(missing_ok=True)  # of one run; it would say that the run is finished
    done = run_in(old_runs, experiment, *arguments)
    assert done.returncode == 0, done.stderr
    newest = max(map(int, before))
    assert f"restored step {newest} of {last}" in done.stdout
    resumed = metrics(directory)
    assert resumed.keys() == recorded.keys()
    assert ("train", last) in resumed and newest < last
    for key, values in recorded.items():
        assert resumed[key] == pytest.approx(values, rel=1e-6), key


def test_a_finished_run_is_finished(old_runs):
    """Results of the earlier version hold flags in place of configs; the same command recognises them as its own."""
    experiment, arguments, _ = RUNS["mqar_mamba"]
    done = run_in(old_runs, experiment, *arguments)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout
    settings = json.loads((old_runs / "mqar_mamba" / "results.json").read_text())["settings"]
    assert settings["model"] == "mamba"
