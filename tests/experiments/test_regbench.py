"""RegBench from its command line."""

import json

import pytest

from mosaics_jax.training.metrics import read_metrics
from tests.experiments.entries import ROOT, refused, run

SMOKE = ROOT / "experiments" / "flags" / "regbench_smoke.flags"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("regbench")
    done = run("regbench", f"--flagfile={SMOKE}", f"--workdir={workdir}", cache)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_results_and_table(finished):
    workdir, done = finished
    result = json.loads((workdir / "results.json").read_text())
    assert (result["experiment"], result["model"], result["num_train"], result["steps"]) == (
        "regbench",
        "mosaic",
        16,
        6,
    )
    assert (result["seed"], result["model_config"]["n_embd"], result["data_config"]["max_words"]) == (0, 32, 12)
    assert result["optimizer_config"]["beta2"] == 0.999
    assert result["loop_config"]["seed"] == 0 and "workdir" not in result["loop_config"]
    assert "settings" not in result
    assert result["params"] > 0 and result["seconds"] > 0
    assert {"device", "devices", "jax"} <= set(result["machine"])
    for name in ("", "validation_"):
        assert 0 <= result[f"{name}accuracy"] < 0.7
        assert 0.3 < result[f"{name}tvd"] <= 1
    assert result["baselines"]["automaton"] == {"accuracy": 1.0, "tvd": pytest.approx(0, abs=1e-6)}
    for line in (f"{result['accuracy']:.3f}  {result['tvd']:.3f}", "4-gram", "uniform"):
        assert line in done.stdout
    evaluations = [record for record in read_metrics(workdir) if record["kind"] == "eval"]
    assert [record["step"] for record in evaluations] == [3, 6]
    assert evaluations[-1]["tvd"] == result["validation_tvd"]


def test_a_finished_run_called_again_says_so_and_changes_nothing(finished, cache):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = run("regbench", f"--flagfile={SMOKE}", f"--workdir={workdir}", cache)
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout
    assert "4-gram" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


BAD_INPUT = {
    "an unknown model": (["--model=mambo"], "--model=mambo: the models are mosaic, gpt2 (or transformer)"),
    "too few positions": (["--model=transformer", "--context_length=64"], "set --context_length="),
    "more automata than there are": (
        ["--max_states=2", "--min_states=2", "--max_edges=1", "--min_symbols=1", "--max_symbols=1"],
        "different automata are asked for",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line(case, tmp_path, cache):
    arguments, expected = BAD_INPUT[case]
    line = refused("regbench", f"--flagfile={SMOKE}", f"--workdir={tmp_path / 'run'}", cache, *arguments)
    assert expected in line
    assert not list(tmp_path.glob("run/checkpoints"))


def test_flags_of_other_models_are_refused(tmp_path, cache):
    transformer = ["--model=transformer", "--context_length=64", "--short_convolution=4"]
    line = refused("regbench", f"--flagfile={SMOKE}", f"--workdir={tmp_path}", cache, *transformer)
    # pmem_size, which the flagfile sets for mosaics, is no error.
    assert "error: --short_convolution: transformer has no such hyper-parameter; its own are --n_layer" in line


def test_results_of_other_settings_are_refused(finished, cache):
    workdir, _ = finished
    line = refused("regbench", f"--flagfile={SMOKE}", f"--workdir={workdir}", cache, "--seed=3")
    assert "other settings (seed was 0, now 3)" in line
