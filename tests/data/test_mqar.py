"""Multi-query associative recall: pairs, queries, and the positions of queries."""

import numpy as np
import pytest

from mosaics_jax.data import mqar
from mosaics_jax.data.mqar import MQARConfig, sequences, training_batches
from mosaics_jax.errors import UserError
from mosaics_jax.shapes import IGNORED


@pytest.mark.parametrize(
    "config",
    [MQARConfig(), MQARConfig(8192, 512, 64), MQARConfig(21, 20, 5), MQARConfig(40, 16, 1), MQARConfig(64, 62, 15)],
)
def test_every_query_has_the_value_of_its_key(config):
    batch = sequences(config, 0, 200)
    inputs, targets = batch["inputs"], batch["targets"]
    pairs, half = config.num_pairs, config.vocab_size // 2
    assert inputs.shape == targets.shape == (200, config.context_length)
    assert inputs.dtype == targets.dtype == np.int32
    keys, values = inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
    assert keys.min() >= 1 and keys.max() < half
    assert values.min() >= half and values.max() < config.vocab_size
    assert inputs.min() >= 0 and inputs.max() < config.vocab_size
    for row in range(200):
        positions = np.flatnonzero(targets[row] != IGNORED)
        assert len(positions) == pairs
        assert (positions >= 2 * pairs).all() and (positions % 2 == 0).all()
        values_of = dict(zip(keys[row].tolist(), values[row].tolist(), strict=True))
        assert len(values_of) == len(set(values_of.values())) == pairs
        # Each key is a query once, and its value is the target.
        assert {int(inputs[row, position]): int(targets[row, position]) for position in positions} == values_of


def test_positions_of_queries_follow_the_power_law():
    config = MQARConfig(vocab_size=200, context_length=42, num_pairs=1)
    for power in (0.01, 1.0):
        config = MQARConfig(vocab_size=200, context_length=42, num_pairs=1, power=power)
        positions = np.argmax(sequences(config, 1, 40_000)["targets"] != IGNORED, axis=1)
        weights = np.arange(1.0, 21) ** (power - 1)
        expected = weights / weights.sum()
        share = np.bincount((positions - 2) // 2, minlength=20) / 40_000
        assert (abs(share - expected) < 4.5 * np.sqrt(expected / 40_000)).all()


def test_positions_of_several_queries_are_drawn_without_replacement():
    batch = sequences(MQARConfig(vocab_size=100, context_length=16, num_pairs=3, power=0.5), 2, 60_000)
    weights = np.arange(1.0, 6) ** -0.5
    keys = batch["inputs"][:, 0:6:2]
    asked = batch["targets"][:, 6::2] != IGNORED
    slots = [np.argmax(asked & (batch["inputs"][:, 6::2] == keys[:, [i]]), axis=1) for i in range(2)]
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(slots), 1)
    expected = np.array([
        [0 if i == j else weights[i] * weights[j] / weights.sum() / (weights.sum() - weights[i]) for j in range(5)]
        for i in range(5)
    ])  # fmt: skip
    np.testing.assert_allclose(counts / 60_000, expected, atol=4.5 * np.sqrt(expected.max() / 60_000))


def test_tokens_are_uniform():
    config = MQARConfig(vocab_size=24, context_length=20, num_pairs=3)
    inputs = sequences(config, 3, 20_000)["inputs"]
    for column, low, high in ((0, 1, 12), (4, 1, 12), (1, 12, 24), (5, 12, 24), (19, 0, 24)):
        counts = np.bincount(inputs[:, column], minlength=24)
        assert counts[:low].sum() == counts[high:].sum() == 0
        expected = 20_000 / (high - low)
        assert (abs(counts[low:high] - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_sequence_depends_on_seed_and_number_alone(monkeypatch):
    config = MQARConfig(num_pairs=4)
    whole = sequences(config, 9, 50)
    part = sequences(config, 9, 20, start=30)
    monkeypatch.setattr(mqar, "BLOCK_WORDS", 1000)
    again = sequences(config, 9, 50)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][30:])
        np.testing.assert_array_equal(again[name], whole[name])
    assert not (sequences(config, 10, 50)["inputs"] == whole["inputs"]).all(axis=1).any()
    assert len(np.unique(whole["inputs"], axis=0)) == 50


def test_batches_hold_each_epoch_once_and_restart_by_number():
    data = sequences(MQARConfig(), 0, 30)
    batches = iter(training_batches(data, 8, seed=1))
    whole = [next(batches) for _ in range(15)]  # four epochs
    stream = np.concatenate([batch["inputs"] for batch in whole])
    orders = []
    for epoch in range(4):
        rows = stream[30 * epoch : 30 * (epoch + 1)]
        orders.append([int(np.flatnonzero((data["inputs"] == row).all(axis=1))[0]) for row in rows])
        assert sorted(orders[-1]) == list(range(30))
    assert len({tuple(order) for order in orders}) == 4
    halves = []
    for index in range(2):
        batches = iter(training_batches(data, 8, 1, index, 2))
        batches.set_state({"next_index": 2})
        halves.append([next(batches) for _ in range(13)])
    for left, right, batch in zip(*halves, whole[2:], strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), batch[name])
    with pytest.raises(UserError, match="8 does not divide among 3"):
        training_batches(data, 8, 1, 0, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_length": 63}, "even"),
        ({"context_length": 28}, "at least 4 num_pairs, 32"),
        ({"num_pairs": 0}, "num_pairs=0"),
        ({"power": 0.0}, "power=0.0"),
        ({"vocab_size": 64}, "above context_length=64"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        MQARConfig(**fields)
    assert "\n" not in str(caught.value)
