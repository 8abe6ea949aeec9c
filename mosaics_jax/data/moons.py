"""The signal of three moons (v1 section 4, appendix A): moons that circle with different periods, observed over time.

A point of the signal holds one complex number e^{i (2 pi t / p + 0.3)} per moon of period p, stored as (sin, cos), so
that C = 2 moons. All training signals are windows of a few trajectories, one trajectory per set of periods.
"""

import dataclasses
import itertools
import math
from fractions import Fraction

import grain
import numpy as np

from mosaics_jax.data.batches import batch_dataset, process_rows
from mosaics_jax.data.random_bits import random_bits
from mosaics_jax.settings import check_choices, setting

Periods = tuple[Fraction, ...]
CHOICES = tuple(Fraction(n, 2) for n in range(1, 8))  # the periods that default sets consist of: 0.5, 1, ... 3.5
# The triples that the published run used. It sorted triples by total period, and no rule decides the order of ties.
TRIPLES = "0.5,1,2 0.5,1,1.5 0.5,1,3 0.5,1.5,3 1,1.5,3 0.5,1,2.5 1,1.5,2 0.5,1.5,2"
HELD_OUT = "1,2,3"
TRAJECTORY_POINTS = 10_000
TOTAL_PERIODS = 3  # that a window spans, of the signal with the longest total period
PHASE = 0.3  # phase of every moon at time 0, in radians


@dataclasses.dataclass(frozen=True)
class MoonsConfig:
    """Which signals are used, and the windows taken from them."""

    moons: int = setting(3, "moons of the signal")
    train_periods: str = setting(
        "", "sets of periods to train on, e.g. '0.5,1,2 1,1.5,3', or empty for those with the least total periods"
    )
    held_out_periods: str = setting("", "set of periods to evaluate on, e.g. '1,2,3', or empty for the next one")
    observer: str = setting("sun", "where the moons are seen from: the sun, or the last of them", ("sun", "planet"))
    context_length: int = setting(800, "T: points of a window, which spans three of the longest total periods")
    batch_size: int = setting(64, "windows in a batch, over all devices")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.moons < 2:
            raise ValueError(f"moons={self.moons} must be at least 2")
        if not self.train_periods and not self.held_out_periods and self.moons > len(CHOICES) - 1:
            raise ValueError(
                f"moons={self.moons}: there are sets for 2 to {len(CHOICES) - 1}; give the periods by flag"
            )
        if self.context_length < 2 or self.batch_size < 1:
            raise ValueError("context_length must be at least 2 and batch_size at least 1")
        if self.context_length >= TRAJECTORY_POINTS:
            raise ValueError(
                f"context_length={self.context_length} is longer than the signal, {TRAJECTORY_POINTS} points"
            )
        for periods in (*self.train, self.held_out):
            if len(periods) != self.moons:
                raise ValueError(f"periods {show(periods)} are {len(periods)}, but moons={self.moons}")

    @property
    def train(self) -> tuple[Periods, ...]:
        if self.train_periods:
            return tuple(parse(text) for text in self.train_periods.split())
        return default_sets(self.moons)[:-1]

    @property
    def held_out(self) -> Periods:
        return parse(self.held_out_periods) if self.held_out_periods else default_sets(self.moons)[-1]

    @property
    def points_per_unit(self) -> float:
        """Points per unit of time: a window spans TOTAL_PERIODS times the longest total period of all sets."""
        longest = max(total_period(periods) for periods in (*self.train, self.held_out))
        return float(self.context_length / (TOTAL_PERIODS * longest))


def parse(text: str) -> Periods:
    """Reads periods from text such as ``0.5,1,2``. Raises ValueError unless they are positive and different."""
    try:
        periods = tuple(Fraction(part.strip()) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"periods {text!r} are not numbers with commas between them, e.g. 0.5,1,2") from None
    if min(periods) <= 0:
        raise ValueError(f"periods {text}: each must be longer than 0")
    if len(set(periods)) < len(periods):
        raise ValueError(f"periods {text}: each moon needs a period of its own")
    return periods


def show(periods: Periods) -> str:
    """The text that `parse` reads."""
    return ",".join(f"{float(period):g}" for period in periods)


def total_period(periods: Periods) -> Fraction:
    """The time after which all moons are at their first positions again: the least common multiple of the periods."""
    return Fraction(
        math.lcm(*(period.numerator for period in periods)), math.gcd(*(period.denominator for period in periods))
    )


def default_sets(moons: int) -> tuple[Periods, ...]:
    """The sets of ``moons`` periods from CHOICES with the least total periods; the last one is to be held out.

    They are a quarter of all sets, and one more.
    """
    if moons == 3:
        return tuple(parse(text) for text in (*TRIPLES.split(), HELD_OUT))
    sets = sorted(itertools.combinations(CHOICES, moons), key=total_period)
    return tuple(sets[: len(sets) // 4 + 1])


def trajectory(periods: Periods, points: int, points_per_unit: float, observer: str = "sun") -> np.ndarray:
    """A signal from time 0 on: float32 (points, 2 moons) with channels sin 1, cos 1, sin 2, ...

    The observer ``planet`` sits on the last moon: the other moons are given relative to the last one, and the last one
    relative to the sun.
    """
    time = np.arange(points)[:, None] / points_per_unit
    angle = 2 * np.pi * time / np.array([float(period) for period in periods]) + PHASE
    x = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    if observer == "planet":
        x[:, :-1] -= x[:, -1:]
    return x.reshape(points, -1).astype(np.float32)


def windows(config: MoonsConfig, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
    """Endless training batches, float32 (B, T + 1, C): each window has a random set of periods and a random start.

    Batch i depends on ``seed`` and i only. Each process gets B = batch_size / process_count consecutive rows; UserError
    if they do not divide.
    """
    rows = process_rows(config.batch_size, process_index, process_count)
    signals = np.stack([_signal(config, periods) for periods in config.train])
    offsets = np.arange(config.context_length + 1)

    def make_batch(index: int) -> np.ndarray:
        bits = random_bits(seed, index, 2 * config.batch_size).reshape(2, -1)[:, rows]
        which = (bits[0] % np.uint64(len(signals))).astype(np.int64)
        return signals[which[:, None], _starts(config, bits[1])[:, None] + offsets]

    return batch_dataset(make_batch)


def evaluation_windows(config: MoonsConfig, periods: Periods, count: int, seed: int) -> np.ndarray:
    """``count`` windows of one signal, at random starts: float32 (count, T, C)."""
    starts = _starts(config, random_bits(seed, 0, count))
    return _signal(config, periods)[starts[:, None] + np.arange(config.context_length)]


def _signal(config: MoonsConfig, periods: Periods) -> np.ndarray:
    return trajectory(periods, TRAJECTORY_POINTS, config.points_per_unit, config.observer)


def _starts(config: MoonsConfig, bits: np.ndarray) -> np.ndarray:
    return (bits % np.uint64(TRAJECTORY_POINTS - config.context_length)).astype(np.int64)
