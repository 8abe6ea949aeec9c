"""The signals of moons: periods, observers and windows."""

import dataclasses

import numpy as np
import pytest

from mosaics_jax.data.moons import (
    MoonsConfig,
    default_sets,
    evaluation_windows,
    parse,
    show,
    total_period,
    trajectory,
    windows,
)


def test_published_periods():
    config = MoonsConfig()
    assert [show(periods) for periods in config.train] == [
        "0.5,1,2",
        "0.5,1,1.5",
        "0.5,1,3",
        "0.5,1.5,3",
        "1,1.5,3",
        "0.5,1,2.5",
        "1,1.5,2",
        "0.5,1.5,2",
    ]
    assert show(config.held_out) == "1,2,3"
    assert config.points_per_unit == pytest.approx(800 / 18)
    assert [float(total_period(periods)) for periods in (*config.train, config.held_out)] == [2, 3, 3, 3, 3, 5, 6, 6, 6]


@pytest.mark.parametrize("moons", [2, 4, 5])
def test_sets_of_other_sizes_have_the_least_total_periods(moons):
    sets = default_sets(moons)
    totals = [total_period(periods) for periods in sets]
    assert totals == sorted(totals)
    assert len(set(sets)) == len(sets)
    assert all(len(set(periods)) == moons for periods in sets)


def test_a_signal_is_the_sine_and_cosine_of_each_moon():
    x = trajectory(parse("0.5,1,2"), 400, 44.0)
    time = np.arange(400) / 44.0
    for moon, period in enumerate((0.5, 1.0, 2.0)):
        np.testing.assert_allclose(x[:, 2 * moon], np.sin(2 * np.pi * time / period + 0.3), atol=1e-6)
        np.testing.assert_allclose(x[:, 2 * moon + 1], np.cos(2 * np.pi * time / period + 0.3), atol=1e-6)
    np.testing.assert_allclose(x[:-88], x[88:], atol=1e-5)  # total period 2


def test_the_planet_sees_the_other_moons_from_the_last():
    sun, planet = (trajectory(parse("0.5,1,2"), 50, 44.0, observer) for observer in ("sun", "planet"))
    np.testing.assert_allclose(planet[:, 0:2], sun[:, 0:2] - sun[:, 4:6], atol=1e-6)
    np.testing.assert_allclose(planet[:, 2:4], sun[:, 2:4] - sun[:, 4:6], atol=1e-6)
    np.testing.assert_array_equal(planet[:, 4:6], sun[:, 4:6])


def test_batches_depend_on_seed_and_number_only():
    config = MoonsConfig(batch_size=8, context_length=50)
    first, second = (batch for _, batch in zip(range(2), windows(config, seed=3), strict=False))
    again = next(iter(windows(config, seed=3)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, next(iter(windows(config, seed=4))))
    assert first.shape == (8, 51, 6)
    halves = [next(iter(windows(config, 3, index, 2))) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), first)


def test_windows_are_pieces_of_the_signals():
    config = MoonsConfig(batch_size=40, context_length=30)
    lines = [trajectory(periods, 10_000, config.points_per_unit) for periods in config.train]
    used = set()
    for window in next(iter(windows(config, seed=0))):
        matches = [
            i for i, line in enumerate(lines) for start in np.flatnonzero((line == window[0]).all(axis=1))
            if np.array_equal(line[start : start + 31], window)
        ]  # fmt: skip
        assert matches
        used.add(matches[0])
    assert len(used) > 4
    held_out = evaluation_windows(config, config.held_out, 5, seed=1)
    assert held_out.shape == (5, 30, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_periods": "0.5,0,2"}, "longer than 0"),
        ({"train_periods": "0.5,-1,2"}, "longer than 0"),
        ({"held_out_periods": "1,2,2"}, "period of its own"),
        ({"held_out_periods": "1,2"}, "moons=3"),
        ({"train_periods": "1,two,3"}, "not numbers"),
        ({"context_length": 20_000}, "longer than the signal"),
        ({"moons": 9}, "2 to 6"),
        ({"moons": 1}, "at least 2"),
        ({"observer": "moon"}, "observer"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MoonsConfig(), **fields)
