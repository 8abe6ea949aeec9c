"""The signal of three moons (v1 section 4, appendix A): points that circle at different periods, seen over time.

A point is one complex number e^{i (2 pi t / p + 0.3)} a moon, stored as (sin, cos): C = 2 moons channels. All training
signals are windows of a few trajectories, one for each set of periods.
"""

import dataclasses
import itertools
import math
from fractions import Fraction

import grain
import numpy as np

from mosaics_jax.errors import UserError
from mosaics_jax.settings import check_choices, setting

Periods = tuple[Fraction, ...]
CHOICES = tuple(Fraction(n, 2) for n in range(1, 8))  # the periods that sets are drawn from: 0.5, 1, ... 3.5
# The published run sorted the triples by their total period, with ties that no rule decides; these are those it used.
TRIPLES = "0.5,1,2 0.5,1,1.5 0.5,1,3 0.5,1.5,3 1,1.5,3 0.5,1,2.5 1,1.5,2 0.5,1.5,2"
HELD_OUT = "1,2,3"
LINE = 10_000  # points of a trajectory
TOTALS = 3  # longest total periods in a window
PHASE = 0.3  # of every moon at time 0, in radians


@dataclasses.dataclass(frozen=True)
class MoonsConfig:
    """Which signals, and how they are cut."""

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
        if self.context_length >= LINE:
            raise ValueError(f"context_length={self.context_length} is longer than the signal, {LINE} points")
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
        """Points in a unit of time: a window is TOTALS times the longest total period of any set."""
        longest = max(total_period(periods) for periods in (*self.train, self.held_out))
        return float(self.context_length / (TOTALS * longest))


def parse(text: str) -> Periods:
    """``0.5,1,2`` to periods. Raises ValueError unless they are positive and different."""
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
    return ",".join(f"{float(period):g}" for period in periods)


def total_period(periods: Periods) -> Fraction:
    """The time after which all moons are back together: the least common multiple of their periods."""
    return Fraction(
        math.lcm(*(period.numerator for period in periods)), math.gcd(*(period.denominator for period in periods))
    )


def default_sets(moons: int) -> tuple[Periods, ...]:
    """The sets of least total period: a quarter of all subsets of CHOICES and one; the last is to be held out."""
    if moons == 3:
        return tuple(parse(text) for text in (*TRIPLES.split(), HELD_OUT))
    sets = sorted(itertools.combinations(CHOICES, moons), key=total_period)
    return tuple(sets[: len(sets) // 4 + 1])


def trajectory(periods: Periods, points: int, points_per_unit: float, observer: str = "sun") -> np.ndarray:
    """A signal from time 0 on: float32 (points, 2 moons), channels sin 1, cos 1, sin 2, ...

    The observer ``planet`` sits on the last moon: the others are given relative to it, itself as seen from the sun.
    """
    time = np.arange(points)[:, None] / points_per_unit
    angle = 2 * np.pi * time / np.array([float(period) for period in periods]) + PHASE
    x = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    if observer == "planet":
        x[:, :-1] -= x[:, -1:]
    return x.reshape(points, -1).astype(np.float32)


def windows(config: MoonsConfig, seed: int, process_index: int = 0, process_count: int = 1) -> grain.IterDataset:
    """Endless training batches, float32 (B, T + 1, C): a set of periods and a start at random for each window.

    Batch i depends on ``seed`` and i alone. Each process gets its own B = batch_size / process_count rows.
    """
    if config.batch_size % process_count:
        raise UserError(f"a batch of {config.batch_size} does not divide among {process_count} processes")
    source = _Windows(config, seed, process_index, process_count)
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


def evaluation_windows(config: MoonsConfig, periods: Periods, count: int, seed: int) -> np.ndarray:
    """``count`` windows of one signal, at random starts: float32 (count, T, C)."""
    line = trajectory(periods, LINE, config.points_per_unit, config.observer)
    starts = _random(seed, 0, count) % np.uint64(LINE - config.context_length)
    return line[starts.astype(np.int64)[:, None] + np.arange(config.context_length)]


def _random(seed: int, index: int, count: int) -> np.ndarray:
    return np.random.Philox(key=np.array([seed % 2**64, index], np.uint64)).random_raw(count)


class _Windows:
    def __init__(self, config: MoonsConfig, seed: int, process_index: int, process_count: int):
        self._lines = np.stack(
            [trajectory(periods, LINE, config.points_per_unit, config.observer) for periods in config.train]
        )
        self._config, self._seed = config, seed
        rows = config.batch_size // process_count
        self._rows = slice(process_index * rows, (process_index + 1) * rows)

    def __repr__(self) -> str:
        return f"MoonWindows({self._config})"

    def __len__(self) -> int:
        return 2**62  # endless

    def __getitem__(self, index: int) -> np.ndarray:
        which, start = _random(self._seed, index, 2 * self._config.batch_size).reshape(2, -1)[:, self._rows]
        which = (which % np.uint64(len(self._lines))).astype(np.int64)
        start = (start % np.uint64(LINE - self._config.context_length)).astype(np.int64)
        return self._lines[which[:, None], start[:, None] + np.arange(self._config.context_length + 1)]
