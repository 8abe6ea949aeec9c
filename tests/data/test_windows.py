"""Random windows are a function of seed and index; evaluation windows predict every token once."""

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mosaics_jax.data.windows import evaluation_windows, random_windows
from mosaics_jax.errors import UserError
from mosaics_jax.shapes import IGNORED

TOKENS = np.arange(1000, dtype=np.uint16)  # each token is its own position


def first_batches(dataset, count):
    return [batch for batch, _ in zip(dataset, range(count), strict=False)]


def equal(left, right):
    return all(np.array_equal(left[key], right[key]) for key in ("inputs", "targets"))


def test_random_windows_are_windows():
    for batch in first_batches(random_windows(TOKENS, context=7, batch_size=4, seed=0), 20):
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "inputs": ((4, 7), np.int32),
            "targets": ((4, 7), np.int32),
        }
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
        np.testing.assert_array_equal(np.diff(batch["inputs"]), 1)


def test_random_windows_start_at_every_position_equally():
    starts = np.concatenate([b["inputs"][:, 0] for b in first_batches(random_windows(TOKENS[:12], 7, 500, seed=0), 20)])
    counts = np.bincount(starts)
    assert len(counts) == 5  # starts 0 to 4: the last target is the last token
    np.testing.assert_allclose(counts / len(starts), 0.2, atol=0.02)
    shortest = first_batches(random_windows(TOKENS[:8], 7, 3, seed=0), 1)[0]
    np.testing.assert_array_equal(shortest["targets"], [range(1, 8)] * 3)


def test_random_windows_depend_on_seed_and_index_alone():
    first = first_batches(random_windows(TOKENS, 7, 4, seed=3), 3)
    assert all(map(equal, first, first_batches(random_windows(TOKENS, 7, 4, seed=3), 3)))
    assert not equal(first[0], first[1])
    assert not equal(first[0], first_batches(random_windows(TOKENS, 7, 4, seed=4), 1)[0])
    # A recorded batch: the bits of Philox do not change from version to version.
    np.testing.assert_array_equal(first[0]["inputs"][:, 0], [952, 673, 132, 943])


@pytest.mark.parametrize(
    "windows", [lambda *a: random_windows(TOKENS, 7, 6, 1, *a), lambda *a: evaluation_windows(TOKENS, 7, 6, *a)]
)
@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_share_the_global_batch(windows, process_count):
    whole = first_batches(windows(), 30)
    parts = [first_batches(windows(process, process_count), 30) for process in range(process_count)]
    assert {len(part) for part in parts} == {len(whole)}
    for index, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[index][key] for part in parts]))


def test_position_is_saved_and_restored_by_orbax(tmp_path):
    dataset = random_windows(TOKENS, 7, 4, seed=1)
    iterator = iter(dataset)
    for _ in range(5):
        next(iterator)
    assert iterator.get_state() == {"next_index": 5}
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = next(iterator)
        restored = iter(random_windows(TOKENS, 7, 4, seed=1))
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
    assert equal(next(restored), expected)


@pytest.mark.parametrize("length", [8, 9, 15, 16, 57, 58, 1000])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluation_predicts_every_token_once(length, batch_size):
    dataset = evaluation_windows(TOKENS[:length], context=7, batch_size=batch_size)
    batches = list(dataset)
    assert {batch["inputs"].shape for batch in batches} == {(batch_size, 7)}
    inputs = np.concatenate([batch["inputs"].ravel() for batch in batches])
    targets = np.concatenate([batch["targets"].ravel() for batch in batches])
    counted = targets != IGNORED
    np.testing.assert_array_equal(targets[counted], np.arange(1, length))
    np.testing.assert_array_equal(inputs[counted], np.arange(length - 1))
    assert len(targets) - counted.sum() < 7 * batch_size  # no batch for nothing
    assert len(list(dataset)) == len(batches)  # and again


def test_evaluation_of_the_beginning():
    batches = list(evaluation_windows(TOKENS, 7, 2, max_tokens=17))
    targets = np.concatenate([batch["targets"].ravel() for batch in batches])
    np.testing.assert_array_equal(targets[targets != IGNORED], np.arange(1, 18))
    assert len(batches) == 2


def test_bad_sizes():
    for windows in (lambda *a: random_windows(*a, seed=0), evaluation_windows):
        with pytest.raises(UserError, match="7 tokens, and one window of context 7 needs 8"):
            windows(TOKENS[:7], 7, 4)
    with pytest.raises(UserError, match="4 does not divide among 3"):
        random_windows(TOKENS, 7, 4, 0, 0, 3)
