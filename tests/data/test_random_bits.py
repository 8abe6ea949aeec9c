"""Random bits are those of Philox, and choices are remainders of these bits."""

import numpy as np

from mosaics_jax.data.random_bits import RandomChoices, random_bits


def test_bits_are_those_of_philox():
    expected = np.random.Philox(key=np.array([3, 5], np.uint64)).random_raw(9)
    np.testing.assert_array_equal(random_bits(3, 5, 9), expected)
    # A recorded value: the bits do not change from version to version.
    assert random_bits(0, 0, 1)[0] == 213000021201967259
    np.testing.assert_array_equal(random_bits(-1, 5, 4), random_bits(2**64 - 1, 5, 4))


def test_keys_and_streams_share_no_bits():
    words = [random_bits(seed, index, 100, stream) for seed in (0, 1) for index in (0, 1) for stream in (0, 1, 2)]
    assert len(np.unique(np.concatenate(words))) == 100 * len(words)


def test_choices_are_remainders_of_consecutive_bits():
    bits = random_bits(7, 2, 200, stream=1).tolist()
    choices = RandomChoices(7, 2, stream=1)
    assert [choices.below(10) for _ in range(100)] == [word % 10 for word in bits[:100]]
    assert [choices.between(5, 7) for _ in range(50)] == [5 + word % 3 for word in bits[100:150]]
    assert choices.pick("abcd") == "abcd"[bits[150] % 4]


def test_pairs_and_samples_have_different_items():
    choices = RandomChoices(0, 0)
    pairs = {choices.pick_two(range(4)) for _ in range(300)}
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}
    samples = [choices.sample(range(6), 3) for _ in range(300)]
    assert all(len(set(sample)) == 3 for sample in samples)
    assert {item for sample in samples for item in sample} == set(range(6))
