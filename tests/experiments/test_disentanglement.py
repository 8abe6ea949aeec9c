"""The share of networks that disentangle, from the command line."""

import json

from tests.experiments.entries import refused, run

SMALL = ("--seeds=2", "--steps=2", "--context_length=40", "--batch_size=2", "--checkpoint_every=0")


def test_a_line_for_each_kind_of_network(tmp_path):
    done = run("disentanglement", f"--workdir={tmp_path}", "--moon_counts=2,3", *SMALL)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["moons"], row["heads"]) for row in results] == [(2, 1), (2, 2), (3, 1), (3, 3)]
    for row in results:
        assert row["share"] == sum(row["disentangled"]) / 2
        assert len(row["final_losses"]) == 2
    assert results[-1]["model_config"] == {"moons": 3, "heads": 3, "sharpness": 50.0}
    assert results[0]["data_config"]["moons"] == 2 and results[0]["loop_config"]["steps"] == 2
    assert " of 2 " in done.stdout.splitlines()[-1]


def test_bad_input_is_one_line(tmp_path):
    assert "give numbers" in refused("disentanglement", f"--workdir={tmp_path}", "--moon_counts=two")
    assert "at least 2" in refused("disentanglement", f"--workdir={tmp_path}", "--moon_counts=1")
    assert "--workdir is needed" in refused("disentanglement")
