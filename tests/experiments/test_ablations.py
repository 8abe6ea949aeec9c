"""Ablations from the command line: their runs and the rows of their table; every variant is a model of its own."""

import re
import subprocess
import sys

from tests.experiments.entries import ROOT, environment, refused, run

FLAGFILE = "--flagfile=experiments/flags/ablations_smoke.flags"
EVERY_VARIANT = """
import json

from experiments.ablations import VARIANTS
from experiments.sweeps.grid import parse_grid
from mosaics_jax.models.registry import MODELS

def typed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text

seen = []
for name, grid in VARIANTS.items():
    (settings,) = parse_grid(grid.format(slots=384))
    config_class, _ = MODELS[settings["model"]]
    fields = {field: typed(value) for field, value in settings.items() if field != "model"}
    config = config_class(**fields)
    assert all(type(value) is type(getattr(config_class, field)) for field, value in fields.items()), name
    assert config not in seen, name
    seen.append(config)
"""


def test_every_variant_is_a_model_of_its_own():
    done = subprocess.run(
        [sys.executable, "-c", EVERY_VARIANT], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_row_for_each_variant_and_what_is_finished_stays(tmp_path):
    done = run("ablations", FLAGFILE, f"--workdir={tmp_path}", "--variants=no peek")
    assert done.returncode == 0, done.stdout + done.stderr
    wider = (FLAGFILE, f"--workdir={tmp_path}", "--variants=no peek,feed-forward", "--benchmarks=mqar")
    *_, no_peek, feed_forward = run("ablations", *wider, "--norun").stdout.splitlines()
    assert re.match(r"no peek +[\d,]+ +[01]\.\d{3} +\d+ +\d+ cores? of ", no_peek)
    assert feed_forward.split() == ["feed-forward"]
    done = run("ablations", *wider)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished before: 1" in done.stdout
    heading, _, *rows = (tmp_path / "results.md").read_text().splitlines()
    assert heading == "| variant | mqar parameters | mqar accuracy | mqar seconds | mqar machine |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["no peek", "feed-forward"]
    assert all(float(row[2]) <= 1 for row in cells)
    # Settings that are not those of a finished run: nothing is run.
    other = tmp_path / "other.flags"
    other.write_text((ROOT / "experiments" / "flags" / "mqar_smoke.flags").read_text() + "--learning_rate=1e-3\n")
    assert "other settings" in refused("ablations", *wider, f"--mqar_base={other}")


def test_bad_input_is_one_line(tmp_path):
    workdir = f"--workdir={tmp_path}"
    assert "choose from mosaic, leaky average fixed" in refused("ablations", workdir, "--variants=mosaics")
    assert "holds no results of regbench or mqar" in refused("ablations", workdir, "--norun")
    assert "choose from regbench, mqar" in refused("ablations", workdir, "--benchmarks=")
    (tmp_path / "narrow.flags").write_text("--n_layer=1\n")
    assert "--mqar_base=nowhere.flags cannot be read" in refused("ablations", workdir, "--mqar_base=nowhere.flags")
    assert "must give the width" in refused("ablations", workdir, f"--mqar_base={tmp_path / 'narrow.flags'}")
