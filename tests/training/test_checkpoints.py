"""Restoring and loading checkpoints that are whole, damaged, half-copied, of another format, or missing."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.training import load_config, load_params, train
from mosaics_jax.training.checkpoint_files import measure
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.run_config import check_config


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged: checkpoints 30, 35 and 40."""
    return shutil.copytree(finished[0], tmp_path / "run")


def largest(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint):
    path = largest(checkpoint / "params")
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(checkpoint):
    path = largest(checkpoint / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated file": (truncate, "bytes"),
    "flipped bit": (flip_a_bit, "is not what was written"),
    "missing file": (lambda checkpoint: largest(checkpoint / "optimizer").unlink(), "is missing"),
    "missing item": (lambda checkpoint: shutil.rmtree(checkpoint / "data"), "is missing"),
    "half-copied": (lambda checkpoint: (checkpoint / "files.json").unlink(), "files.json is missing"),
    "empty": (lambda checkpoint: [shutil.rmtree(checkpoint), checkpoint.mkdir()], "files.json is missing"),
    "not json": (lambda checkpoint: (checkpoint / "files.json").write_text("{"), "files.json: "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_newest_whole_checkpoint_is_loaded_and_the_damage_named(kind, copied, caplog):
    damage, reason = DAMAGE[kind]
    damage(copied / "checkpoints" / "40")
    with caplog.at_level(logging.WARNING):
        params = load_params(copied)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "/checkpoints/40 is damaged" in message
    assert reason in message
    shutil.rmtree(copied / "checkpoints" / "40")
    jax.tree.map(np.testing.assert_array_equal, params, load_params(copied))


def test_training_goes_on_before_the_damage_and_ends_the_same(finished, tiny, copied, caplog):
    truncate(copied / "checkpoints" / "40")
    flip_a_bit(copied / "checkpoints" / "35")
    result = train(copied, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    jax.tree.map(np.testing.assert_array_equal, result.params, finished[1].params)
    assert result.train_loss == finished[1].train_loss
    steps = [record["step"] for record in read_metrics(copied) if record["kind"] == "train"]
    assert steps == list(range(1, 41))
    assert [path.name for path in sorted((copied / "damaged").iterdir())] == ["35", "40"]
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == ["30", "35", "40"]
    assert len([record for record in caplog.records if "is damaged" in record.getMessage()]) == 2


def test_no_whole_checkpoint_left(tiny, copied):
    for step in ("30", "35", "40"):
        truncate(copied / "checkpoints" / step)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train(copied, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    with pytest.raises(UserError, match="holds no whole checkpoint"):
        load_params(copied)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir()) == ["30", "35", "40"]


def rewrite_meta(checkpoint, **changes):
    """Changes meta, and the list of files with it."""
    path = checkpoint / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (checkpoint / "files.json").write_text(json.dumps(measure(checkpoint)))


def test_another_format_is_refused(tiny, copied):
    rewrite_meta(copied / "checkpoints" / "40", format=4)
    with pytest.raises(UserError, match="has format 4, this program reads up to 3"):
        train(copied, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    with pytest.raises(UserError, match="has format 4, this program reads up to 3"):
        load_params(copied)
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match="has format 4, this program reads up to 3"):
        load_config(copied)


def as_format_1(checkpoint, positions):
    """Rewrites a checkpoint as a program of format 1 wrote it, with one process for each position."""
    (checkpoint / "data" / "metadata").unlink()
    for process, position in enumerate(positions):
        path = checkpoint / "data" / f"process_{process}-of-{len(positions)}.json"
        path.write_text(json.dumps({"next_index": position}))
    config = load_config(checkpoint.parents[1])
    del config["optimizer"]["skip_spikes"]
    rewrite_meta(checkpoint, format=1, config=config)


def test_format_1_goes_on_in_another_number_of_processes(finished, tiny, copied):
    shutil.rmtree(copied / "checkpoints" / "40")
    as_format_1(copied / "checkpoints" / "35", [35, 35])
    result = train(copied, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    jax.tree.map(np.testing.assert_array_equal, result.params, finished[1].params)


def test_format_1_with_positions_that_differ_is_refused(tiny, copied):
    as_format_1(copied / "checkpoints" / "40", [40, 41])
    with pytest.raises(UserError, match=r"2 processes were at different places .* go on with the program"):
        train(copied, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())


def test_a_new_setting_is_compared_with_format_1_too(tiny, copied):
    as_format_1(copied / "checkpoints" / "40", [40])
    with pytest.raises(UserError, match=r"skip_spikes: checkpoint has 0.0, this run has 5.0"):
        train(copied, tiny.LOOP, dataclasses.replace(tiny.OPTIMIZER, skip_spikes=5.0), tiny.make_task())


def test_parameters_of_another_shape_do_not_fit(tiny, copied):
    task = tiny.make_task(init=lambda key: {"hidden": jax.numpy.zeros((8, 8))})
    with pytest.raises(UserError, match="checkpoints/40 does not fit this program"):
        train(copied, tiny.LOOP, tiny.OPTIMIZER, task)


def test_load_params_and_config(finished, tiny):
    workdir, result = finished
    params = load_params(str(workdir))
    assert jax.tree.map(np.shape, params) == {"bias": (16,), "hidden": (8, 16), "out": (16, 8)}
    jax.tree.map(np.testing.assert_array_equal, params, result.params)
    config = load_config(workdir)
    assert config["experiment"] == "tiny/net"
    assert config["task"]["model"] == {"width": 16}
    assert config["optimizer"]["learning_rate"] == 1e-2


def test_runs_are_found_below_the_directory(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "gpt2")
    assert load_config(tmp_path)["experiment"] == "tiny/net"
    shutil.copytree(finished[0], tmp_path / "other")
    with pytest.raises(UserError, match=r"holds several runs, give one of them: .*gpt2, .*other"):
        load_params(tmp_path)
    (tmp_path / "other").rename(tmp_path / "mosaic")
    (tmp_path / "mosaic" / "config.json").write_text(json.dumps({"experiment": "babistories/mosaic"}))
    assert load_config(tmp_path) == {"experiment": "babistories/mosaic"}


def test_directories_without_checkpoints(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        load_params(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        load_config(tmp_path)


def test_a_full_disk_stops_the_run_before_it_writes(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=r"no room for a checkpoint in .*: 0\.0 MB needed, 0\.0 MB free"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_write_that_fails_in_the_background_is_reported_and_loses_nothing(tiny, tmp_path, monkeypatch):
    """A disk that fills up during the save: the operating system's error reaches the user as one line."""
    from mosaics_jax.training import checkpoints

    def fail_at_ten(directory):
        if directory.name.startswith("10."):
            raise OSError(28, "No space left on device")
        return measure(directory)

    monkeypatch.setattr(checkpoints, "measure", fail_at_ten)
    with pytest.raises(UserError, match=r"the checkpoint of step 10 could not be written in .*No space left on device"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    monkeypatch.undo()
    assert "5" in [path.name for path in (tmp_path / "checkpoints").iterdir()]
    result = train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    assert result.step == 40


def test_the_best_is_kept_apart(tiny, tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0}
    seen = {}

    def evaluate(params):
        step = 10 * (len(seen) + 1)
        seen[step] = jax.device_get(params)
        return {"loss": losses[step], "accuracy": 0.5}

    train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task(evaluate=evaluate))
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["20"]
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, which="best"), seen[20])
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path), seen[40])


@pytest.mark.parametrize(("kept", "new"), [(True, "20"), (False, "40")])
def test_the_best_is_remembered_unless_it_is_damaged(kept, new, tiny, copied):
    """Resumes after step 20, whose evaluation was the best, and evaluates worse."""
    for step in ("35", "40"):
        shutil.rmtree(copied / "checkpoints" / step)
    shutil.move(copied / "best" / "40", copied / "best" / "20")
    if not kept:
        truncate(copied / "best" / "20")
    task = tiny.make_task(evaluate=lambda params: {"loss": 100.0})
    train(copied, tiny.LOOP, tiny.OPTIMIZER, task)
    assert [path.name for path in (copied / "best").iterdir()] == [new]
    assert (copied / "damaged" / "best" / "20").exists() != kept


def test_runs_without_an_evaluation_have_no_best(tiny, copied):
    shutil.rmtree(copied / "best")
    with pytest.raises(UserError, match="best holds no finished checkpoint"):
        load_params(copied, which="best")


def test_by_minutes(tiny, tmp_path):
    """Every step is saved, more than a nanominute after the last one; checkpoints that are not kept are deleted."""
    loop = dataclasses.replace(tiny.LOOP, steps=6, checkpoint_every=0, checkpoint_every_minutes=1e-9)
    task = tiny.make_task(evaluate=None, sample=None)
    train(tmp_path / "all", dataclasses.replace(loop, keep_checkpoints=9), tiny.OPTIMIZER, task)
    train(tmp_path / "newest", dataclasses.replace(loop, keep_every_minutes=60.0), tiny.OPTIMIZER, task)
    names = [{path.name for path in (tmp_path / run / "checkpoints").iterdir()} for run in ("all", "newest")]
    assert names == [{"1", "2", "3", "4", "5", "6"}, {"1", "4", "5", "6"}]


def test_check_config_takes_what_json_makes_of_a_config():
    check_config({"task": {"sizes": [1, 2], "rate": 0.1}}, {"task": {"sizes": (1, 2), "rate": 0.1}})
    with pytest.raises(UserError, match=r"sizes: checkpoint has \[1, 2\], this run has \[1, 3\]"):
        check_config({"task": {"sizes": [1, 2]}}, {"task": {"sizes": (1, 3)}})
