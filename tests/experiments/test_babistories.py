"""The language-model experiment from its command line."""

import json
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.token_files import prepare
from mosaics_jax.data.tokenizers import train_sentencepiece
from mosaics_jax.models.registry import MODELS
from mosaics_jax.training import load_config, load_params
from mosaics_jax.training.metrics import read_metrics
from tests.experiments.entries import ROOT, SMOKE, command, environment, refused, run


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A directory with training and evaluation text."""
    directory = tmp_path_factory.mktemp("text")
    for name, seed, count in (("train", 1, 120), ("valid", 2, 12)):
        write_corpus(directory / f"{name}.txt", seed, count)
    return directory


def files(text):
    return f"--train_files={text / 'train.txt'}", f"--eval_files={text / 'valid.txt'}"


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    done = run("babistories", f"--flagfile={SMOKE}", f"--workdir={workdir}", *files(text))
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_results_curves_and_stories(finished):
    workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert list(results) == ["mosaic", "gpt2"]
    for name, result in results.items():
        measured = {"params", "train_loss", "val_loss", "steps", "tokens_per_s"}
        assert set(result) == measured | {"model_config", "data_config", "optimizer_config", "loop_config"}
        config = MODELS[name][0](**result["model_config"])
        assert (config.n_embd, config.vocab_size) == (32, 512)
        assert result["data_config"]["text"]["context_length"] == 64
        assert result["data_config"]["corpus"]["tokenizer"]
        assert (result["optimizer_config"]["warmup_steps"], result["loop_config"]["steps"]) == (2, 6)
        assert result["steps"] == 6
        assert result["params"] == sum(leaf.size for leaf in jax.tree.leaves(load_params(workdir / name)))
        assert f"{result['val_loss']:.4f}" in done.stdout
        # Untrained, both are near ln 512 = 6.24.
        assert 4.0 < result["val_loss"] < 6.5
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "continued by mosaic" in done.stdout
    assert "[...]" in done.stdout
    assert done.stdout.count("tokens/s") >= 6
    assert " left" in done.stdout
    assert "total" in done.stdout


def test_parameters_come_back_from_the_directory_of_both_models(finished):
    workdir, _ = finished
    np.testing.assert_array_equal(load_params(workdir)["embedding"], load_params(workdir / "mosaic")["embedding"])
    task = load_config(workdir)["task"]
    assert task["model"]["name"] == "mosaic"
    assert task["model"]["n_embd"] == 32
    assert set(task["data"]) == {"text", "corpus"}


def test_a_finished_run_called_again_returns_its_results_and_changes_nothing(finished, text):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*") if path.is_file()}
    results = (workdir / "results.json").read_text()
    again = run("babistories", f"--flagfile={SMOKE}", f"--workdir={workdir}", *files(text))
    assert again.returncode == 0, again.stderr
    assert (workdir / "results.json").read_text() == results
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("checkpoints/**/*") if path.is_file()}


def test_killed_and_started_again_it_ends_with_the_same_bits(finished, text, tmp_path):
    workdir, _ = finished
    arguments = (f"--flagfile={SMOKE}", f"--workdir={tmp_path}", "--model=mosaic", *files(text))
    process = subprocess.Popen(
        command("babistories", *arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not any(r["step"] >= 4 for r in read_metrics(tmp_path / "mosaic") if r["kind"] == "train"):
        assert time.monotonic() < deadline and process.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run("babistories", *arguments)
    assert done.returncode == 0, done.stderr
    for a, b in zip(
        jax.tree.leaves(load_params(tmp_path)), jax.tree.leaves(load_params(workdir / "mosaic")), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    losses, undisturbed = (
        [(r["step"], r["loss"]) for r in read_metrics(d / "mosaic") if r["kind"] == "train"]
        for d in (tmp_path, workdir)
    )
    assert losses == undisturbed


def test_another_config_is_refused_by_name(finished, text):
    workdir, _ = finished
    line = refused(
        "babistories", f"--flagfile={SMOKE}", f"--workdir={workdir}", *files(text), "--n_embd=64", "--learning_rate=0.1"
    )
    assert "n_embd: checkpoint has 32, this run has 64" in line
    assert "learning_rate" in line


@pytest.fixture(scope="module")
def tokens(text):
    """A directory of tokens made with another tokenizer than the text's own."""
    tokenizer = train_sentencepiece(iter(["some other words, seen by nobody else. " * 20]), 300)
    return prepare([text / "valid.txt"], tokenizer, text / "tokens", progress=False).directory


CASES = {
    "no work directory": (["--workdir="], "--workdir is needed"),
    "one kind of files": (["--train_files={text}/train.txt"], "--eval_files"),
    "a missing file": (["--train_files={text}/none.txt", "--eval_files={text}/valid.txt"], "none.txt"),
    "an empty file": (["--train_files={text}/empty.txt", "--eval_files={text}/valid.txt"], "empty.txt"),
    "binary text": (["--train_files={text}/binary.txt", "--eval_files={text}/valid.txt"], "binary.txt"),
    "truncated text": (["--train_files={text}/cut.txt.gz", "--eval_files={text}/valid.txt"], "cut.txt.gz"),
    "a short corpus": (
        ["--train_files={text}/train.txt", "--eval_files={text}/valid.txt", "--context_length=90000"],
        "90001",
    ),
    "tokens of another tokenizer": (
        ["--train_files={text}/train.txt", "--eval_files={text}/tokens"],
        "another tokenizer",
    ),
    "a vocabulary below the tokenizer's": (
        ["--train_files={text}/tokens", "--eval_files={text}/tokens", "--vocab_size=64"],
        "below the tokenizer's 300 ids",
    ),
    "a vocabulary that the text does not yield": (
        ["--train_files={text}/train.txt", "--eval_files={text}/valid.txt", "--vocab_size=60000"],
        "60000",
    ),
    "heads that do not divide": (["--n_head=5"], "n_embd=32 is not divisible by n_head=5"),
    "an unknown model": (["--model=mambo"], "model=mambo: the models are mosaic, gpt2 (or transformer)"),
    "a model twice": (["--model=mosaic,mosaic"], "name each model once"),
    "a model by both names": (["--model=gpt2,transformer"], "name each model once"),
    "a negative batch": (["--batch_size=-1"], "batch_size=-1 must be at least 1"),
    "a work directory that is a file": (["--workdir={text}/train.txt"], "is not a directory"),
    "an argument without a flag": (["train"], "unexpected argument 'train'"),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_bad_input_gets_one_line(case, text, tokens, tmp_path):
    (text / "empty.txt").write_text("")
    (text / "binary.txt").write_bytes(bytes(range(256)))
    (text / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03cut")
    arguments, expected = CASES[case]
    given = [argument.format(text=text) for argument in arguments]
    line = refused("babistories", f"--flagfile={SMOKE}", f"--workdir={tmp_path / 'run'}", *given)
    assert expected in line
    assert not list(tmp_path.glob("run/*/checkpoints"))


def test_any_model_of_the_registry_is_trained_and_evaluated(text, tmp_path):
    models = ("--model=transformer,mamba", "--eval_tokens=256")
    done = run("babistories", f"--flagfile={SMOKE}", f"--workdir={tmp_path}", *models, *files(text))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["transformer", "mamba"]
    assert "mamba_states" in results["mamba"]["model_config"]
    assert all(4.0 < result["val_loss"] < 6.6 for result in results.values())
    assert "mamba does not generate text: no samples" in done.stdout
    assert "continued by transformer" in done.stdout
    assert load_config(tmp_path / "transformer")["task"]["model"]["name"] == "transformer"


def test_an_unknown_flag_is_named(tmp_path):
    assert "Unknown command line flag 'n_layr'" in refused("babistories", f"--workdir={tmp_path}", "--n_layr=3")
