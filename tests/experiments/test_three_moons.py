"""Three moons from the command line."""

import json

import numpy as np
import pytest

from tests.experiments.entries import ROOT, refused, run

SMOKE = ROOT / "experiments" / "flags" / "three_moons_smoke.flags"
FIGURES = ("error", "continuation", "attention", "matrices_one_head", "matrices_three_heads")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moons")
    done = run("three_moons", f"--flagfile={SMOKE}", f"--workdir={workdir}", "--seeds=2")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_results_and_figures(finished):
    workdir, done = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["signals"]["held_out"]["periods"] == pytest.approx([120 / 18, 120 / 9, 20])
    assert results["signals"]["held_out"]["total"] == pytest.approx(40)
    assert results["contexts"] == list(range(1, 96))
    for name in ("one_head", "three_heads"):
        copies = results[name]["seeds"]
        assert len(copies) == 2
        assert results[name]["model_config"]["heads"] == {"one_head": 1, "three_heads": 3}[name]
        assert results[name]["data_config"]["context_length"] == 120
        assert results[name]["optimizer_config"]["decay"] == "linear"
        assert copies[0]["final_loss"] != copies[1]["final_loss"]
        for copy in copies:
            assert 0 < copy["final_loss"] < 0.26
            assert set(copy["error"]) == set(copy["knee"]) == {"train", "held_out"}
            assert len(copy["error"]["held_out"]) == 95
            assert np.shape(copy["moduli"]["W_phi"]) == (3, 3)
            assert copy["disentangled"] in (True, False)
    for figure in FIGURES:
        assert (workdir / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (workdir / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert "54" not in done.stderr
    assert "points/s" in done.stdout
    assert " of 2 " in done.stdout


def test_the_same_command_again_gives_the_same_results(finished):
    workdir, _ = finished
    before = json.loads((workdir / "results.json").read_text())
    done = run("three_moons", f"--flagfile={SMOKE}", f"--workdir={workdir}", "--seeds=2")
    assert done.returncode == 0, done.stderr
    assert "restored step 6 of 6" in done.stdout
    assert json.loads((workdir / "results.json").read_text()) == before


def test_results_do_not_depend_on_the_number_of_devices(finished, tmp_path, monkeypatch):
    """By default there is a device for each core, if they divide the batch of four."""
    workdir, done = finished
    count = 2 if "devices: 4 x" in done.stdout else 4
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={count}")
    other = run("three_moons", f"--flagfile={SMOKE}", f"--workdir={tmp_path}", "--seeds=2")
    assert other.returncode == 0, other.stderr
    assert f"devices: {count} x" in other.stdout
    few, many = (json.loads((path / "results.json").read_text()) for path in (workdir, tmp_path))
    for name in ("one_head", "three_heads"):
        for one, other in zip(few[name]["seeds"], many[name]["seeds"], strict=True):
            assert one["final_loss"] == pytest.approx(other["final_loss"], rel=1e-5)
            assert one["error"]["train"] == pytest.approx(other["error"]["train"], rel=2e-3)


def test_the_first_copy_does_not_depend_on_their_number(finished, tmp_path):
    workdir, _ = finished
    done = run("three_moons", f"--flagfile={SMOKE}", f"--workdir={tmp_path}", "--heads=3", "--authors_metric")
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "results.json").read_text())
    together = json.loads((workdir / "results.json").read_text())
    assert alone["three_heads"]["seeds"][0]["final_loss"] == pytest.approx(
        together["three_heads"]["seeds"][0]["final_loss"], rel=1e-5
    )
    assert alone["authors_metric"]
    assert alone["three_heads"]["seeds"][0]["error"] != together["three_heads"]["seeds"][0]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--heads=3", "--moons=2"), "more than moons=2"),
        (("--train_periods=1,0,2",), "longer than 0"),
        (("--train_periods=1,-2,3",), "longer than 0"),
        (("--held_out_periods=1,1,2",), "period of its own"),
        (("--context_length=10000",), "longer than the signal"),
        (("--context_length=30",), "more than 35"),
        (("--heads=one",), "give numbers"),
        (("--seeds=0",), "seeds=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    assert message in refused("three_moons", f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_work_directory_is_needed():
    assert "--workdir is needed" in refused("three_moons")


def test_a_work_directory_of_another_experiment_is_refused(finished):
    workdir, _ = finished
    line = refused(
        "three_moons", f"--flagfile={SMOKE}", f"--workdir={workdir}", "--seeds=2", "--held_out_periods=1,2,3.5"
    )
    assert "held_out_periods" in line
