"""What a run does and writes, what it refuses, and how it ends when a number is not finite."""

import dataclasses
import io
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.training import Diverged, LoopConfig, load_params, train
from mosaics_jax.training.metrics import read_metrics


def tree_of(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_a_run_learns_and_records_every_step(finished, tiny):
    workdir, result = finished
    records = read_metrics(workdir)
    losses = {record["step"]: record["loss"] for record in records if record["kind"] == "train"}
    assert list(losses) == list(range(1, 41))
    assert result.step == 40
    assert result.train_loss == pytest.approx(np.mean(list(losses.values())), rel=1e-12)
    assert np.mean([losses[step] for step in range(36, 41)]) < losses[1] - 0.5
    evaluations = [record for record in records if record["kind"] == "eval"]
    assert [record["step"] for record in evaluations] == [10, 20, 30, 40]
    assert result.eval_metrics == {"loss": evaluations[-1]["loss"]}
    assert [record["step"] for record in records if record["kind"] == "sample"] == [20, 40]
    assert {name for record in records if record["kind"] == "time" for name in record} >= {"evaluation", "checkpoint"}
    assert result.params_count == 8 * 16 + 16 + 16 * 8
    assert result.tokens_per_s == pytest.approx(16 * 40 / result.seconds)
    rates = [record["learning_rate"] for record in records if record["kind"] == "train"]
    assert rates[:5] == pytest.approx([0, 2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["30", "35", "40"]


def test_output(tiny, tmp_path, capsys):
    train(tmp_path, dataclasses.replace(tiny.LOOP, steps=4, log_every=2), tiny.OPTIMIZER, tiny.make_task())
    output = capsys.readouterr().out
    assert "hidden     8 x 16  float32    128  -, -" in output
    assert "total                         272" in output
    for part in ("compiled in", "step 2/4  loss", "tokens/s", " left", "evaluation took", "checkpoint took", "sum "):
        assert part in output


def test_a_run_goes_on_when_nobody_reads_what_it_says(tiny, tmp_path, monkeypatch):
    class Unread(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Unread())
    loop = dataclasses.replace(tiny.LOOP, steps=4, log_every=2)
    assert train(tmp_path, loop, tiny.OPTIMIZER, tiny.make_task()).step == 4


def test_a_finished_run_is_given_back_at_once(finished, tiny):
    workdir, result = finished
    before = tree_of(workdir)

    def no_more(*_):
        raise AssertionError("a finished run makes no step")

    again = train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task(loss=no_more, evaluate=no_more, sample=no_more))
    assert tree_of(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    assert dataclasses.replace(again, params=None) == dataclasses.replace(result, params=None)


def test_another_config_is_refused_before_anything_is_written(finished, tiny):
    workdir, _ = finished
    before = tree_of(workdir)
    loop = dataclasses.replace(tiny.LOOP, steps=50, eval_every=7)
    optimizer = dataclasses.replace(tiny.OPTIMIZER, beta2=0.99)
    task = tiny.make_task(config={"model": {"width": 32}, "new": True})
    with pytest.raises(UserError) as error:
        train(workdir, loop, optimizer, task)
    for difference in (
        "steps: checkpoint has 40, this run has 50",
        "beta2: checkpoint has 0.95, this run has 0.99",
        "model.width: checkpoint has 16, this run has 32",
        "new: checkpoint has no such field, this run has True",
    ):
        assert difference in str(error.value)
    assert "eval_every" not in str(error.value)
    assert "betas" not in str(error.value)
    with pytest.raises(UserError, match="experiment: checkpoint has 'tiny/net', this run has 'tiny/other'"):
        train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task(name="tiny/other"))
    assert tree_of(workdir) == before


def spoilt_task(tiny, batch_number):
    """A task whose batch number ``batch_number`` (from 1) holds a NaN."""
    rows = tiny.rows(0, 480)
    rows[16 * batch_number - 5]["x"] = np.full(8, np.nan, np.float32)
    return tiny.make_task(train_data=grain.MapDataset.source(rows).repeat().batch(16).to_iter_dataset())


@pytest.mark.parametrize(("every", "last"), [(5, 10), (1, 12)])
def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path, every, last):
    loop = dataclasses.replace(tiny.LOOP, checkpoint_every=every)
    with pytest.raises(Diverged, match="loss is nan at step 13"):
        train(tmp_path, loop, tiny.OPTIMIZER, spoilt_task(tiny, 13))
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == last
    assert read_metrics(tmp_path)[-1]["step"] == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_params(tmp_path)))


def test_no_checkpoint_of_parameters_that_are_not_finite(tiny, tmp_path):
    """A parameter that is not finite stops the run even if no metric shows it."""
    task = tiny.make_task(
        init=lambda key: {"net": tiny.make_task().init(key), "unused": jnp.full(3, jnp.inf)},
        loss=lambda params, batch, key: tiny.cross_entropy(params["net"], batch, key),
        evaluate=None,
        sample=None,
    )
    with pytest.raises(Diverged, match="a parameter is not finite after step 5"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, task)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_evaluation_that_is_not_finite_is_named(tiny, tmp_path):
    task = tiny.make_task(evaluate=lambda params: {"loss": 1.0, "perplexity": float("inf")})
    with pytest.raises(Diverged, match="perplexity is inf at step 10"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, task)


def test_data_that_ends(tiny, tmp_path):
    data = grain.MapDataset.source(tiny.rows(0, 48)).batch(16).to_iter_dataset()
    with pytest.raises(UserError, match="the training data ended before step 4"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task(train_data=data))


def test_a_batch_that_does_not_divide(tiny, tmp_path):
    optimizer = dataclasses.replace(tiny.OPTIMIZER, accumulate=5)
    with pytest.raises(UserError, match="a batch of 16 does not divide into 5"):
        train(tmp_path, tiny.LOOP, optimizer, tiny.make_task())


def test_profile(tiny, tmp_path):
    loop = dataclasses.replace(tiny.LOOP, steps=4, profile_start=2, profile_steps=2)
    train(tmp_path, loop, tiny.OPTIMIZER, tiny.make_task(evaluate=None, sample=None))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("log_every", 0), ("eval_every", -1), ("seed", -1)])
def test_impossible_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        LoopConfig(**{field: value})
