"""Skipped steps: they change nothing but what is reported of them."""

import dataclasses
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.training import Diverged, OptimizerConfig, progress, train
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.optimizer import make_optimizer, schedule
from mosaics_jax.training.spikes import MIN_NORMS, WINDOW
from mosaics_jax.training.state import TrainState, make_step

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=4, skip_spikes=5.0)


def run(batches):
    """The state and the metrics after each batch, of a regression without dropout; a parameter is -0.0 for good."""
    optimizer = make_optimizer(CONFIG, 40, {"w": False, "b": False})
    params = {"w": jnp.zeros(3), "b": jnp.float32(-0.0)}

    def loss(params, batch, key):
        return jnp.mean(jnp.square(batch["x"] @ params["w"] - batch["y"])), {}

    step = jax.jit(make_step(loss, optimizer, schedule(CONFIG, 40)))
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params), key=key)
    for batch in batches:
        state, metrics = step(state, batch)
        yield state, metrics


def batches(count, spoilt=None):
    random = np.random.default_rng(3)
    for number in range(count):
        x = random.normal(size=(8, 3)).astype(np.float32)
        batch = {"x": x, "y": x @ np.float32([1, -2, 3]) + random.normal(size=8).astype(np.float32)}
        for index, factor in (spoilt or {}).items():
            if number == index:
                yield {"x": x, "y": batch["y"] * np.float32(factor)}
        yield batch


def test_skipped_steps_leave_every_bit_as_it_was():
    spoilt = {3: np.nan, 20: np.inf, MIN_NORMS + 6: 1e4, MIN_NORMS + 8: np.nan}
    *_, (clean, clean_metrics) = run(batches(32))
    *_, (state, metrics) = run(batches(32, spoilt))
    assert int(state.step) == 36
    assert int(state.opt_state.skipped) == int(metrics["skipped"]) == 4
    assert metrics["learning_rate"] == clean_metrics["learning_rate"]  # that of as many updates
    for kept, plain in ((state.params, clean.params), (state.opt_state.inner, clean.opt_state.inner)):
        assert [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(kept))] == [
            leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(plain))
        ]
    assert np.signbit(state.params["b"])


def test_spikes_are_told():
    told = [int(metrics["spike"]) for _, metrics in run(batches(30, {MIN_NORMS: 1e4, 25: np.nan}))]
    assert [step for step, spike in enumerate(told) if spike] == [MIN_NORMS, 26]


def test_no_median_of_a_few_norms():
    """The first steps of a run differ by more than any spike."""
    told = [int(metrics["spike"]) for _, metrics in run(batches(MIN_NORMS, {MIN_NORMS - 2: 1e4}))]
    assert sum(told) == 0


def test_gradients_that_grow_for_good_are_taken_after_half_a_window():
    def grown():
        for number, batch in enumerate(batches(3 * WINDOW)):
            yield batch if number < WINDOW else {**batch, "y": batch["y"] * 1000}

    told = [int(metrics["spike"]) for _, metrics in run(grown())]
    assert sum(told[:WINDOW]) == 0
    assert all(told[WINDOW : WINDOW + WINDOW // 2])
    assert not any(told[2 * WINDOW :])


def spoilt_data(tiny, *numbers):
    """Batches; those with these ``numbers`` (from 1) hold a NaN."""
    rows = tiny.rows(0, 480)
    for number in numbers:
        rows[16 * number - 5]["x"] = np.full(8, np.nan, np.float32)
    return grain.MapDataset.source(rows).repeat().batch(16).to_iter_dataset()


def test_a_run_goes_on_after_nan_and_resumes_with_its_count(tiny, tmp_path, capsys):
    optimizer = dataclasses.replace(tiny.OPTIMIZER, skip_spikes=20.0)
    task = tiny.make_task(train_data=spoilt_data(tiny, 13, 24))
    loop = dataclasses.replace(tiny.LOOP, keep_checkpoints=9)
    result = train(tmp_path, loop, optimizer, task)
    output = capsys.readouterr().out
    assert "step 13/40  skipped: loss nan  gradient nan  (1 skipped so far)" in output
    assert "left  2 skipped" in output
    assert np.isfinite(result.train_loss)

    def kinds(kind):
        return [record for record in read_metrics(tmp_path) if record["kind"] == kind]

    def told():
        return [(record["step"], record["skipped"]) for record in kinds("skipped")]

    assert told() == [(13, 1), (24, 2)]
    assert [record["step"] for record in kinds("train")] == [step for step in range(1, 41) if step not in (13, 24)]
    for step in (20, 25, 30, 35, 40):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    again = train(tmp_path, loop, optimizer, task)
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)
    assert told() == [(13, 1), (24, 2)]
    assert again.train_loss == result.train_loss


def test_nothing_but_spikes_ends_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "MAX_SKIPPED_IN_A_ROW", 5)
    task = tiny.make_task(train_data=spoilt_data(tiny, *range(7, 31)), evaluate=None, sample=None)
    with pytest.raises(Diverged, match="5 steps up to step 11 were skipped in a row"):
        train(tmp_path, tiny.LOOP, dataclasses.replace(tiny.OPTIMIZER, skip_spikes=20.0), task)


@pytest.mark.parametrize("value", [-1.0, 1.0, 0.5])
def test_factors_that_make_no_sense(value):
    with pytest.raises(ValueError, match="skip_spikes"):
        OptimizerConfig(skip_spikes=value)
