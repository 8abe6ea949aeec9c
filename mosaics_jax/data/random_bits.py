"""Random bits and choices that are equal on every machine and that any process can make in any order.

They are raw bits of the counter-based generator Philox under the key (seed, index). The bits of Philox are fixed;
the results of numpy's distributions may change from version to version.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

# Streams of one key: different uses of a key in one data set take different streams, so that they never share bits.
AUTOMATON_STREAM, PROBLEM_STREAM, ORDER_STREAM = range(3)


def random_bits(seed: int, index: int, count: int, stream: int = 0) -> np.ndarray:
    """uint64 (count,) under the key (``seed``, ``index``); any integer is a seed."""
    return _generator(seed, index, stream).random_raw(count)


def _generator(seed: int, index: int, stream: int) -> np.random.Philox:
    return np.random.Philox(counter=[0, 0, 0, stream], key=np.array([seed % 2**64, index], np.uint64))


class RandomChoices:
    """A sequence of uniform choices from the bits of one key and stream. The bias of the remainder is below 2**-58."""

    def __init__(self, seed: int, index: int, stream: int = 0):
        self._words = _words(_generator(seed, index, stream))

    def below(self, count: int) -> int:
        """An integer from 0 to ``count`` - 1."""
        return next(self._words) % count

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[self.below(len(items))]

    def pick_two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two of ``items`` at different positions."""
        first = self.below(len(items))
        step = 1 + self.below(len(items) - 1)
        return items[first], items[(first + step) % len(items)]

    def sample(self, items: Sequence[int], count: int) -> list[int]:
        """``count`` of ``items`` at different positions, in random order: the first steps of a Fisher-Yates shuffle."""
        pool = list(items)
        for position in range(count):
            other = position + self.below(len(pool) - position)
            pool[position], pool[other] = pool[other], pool[position]
        return pool[:count]


def _words(generator: np.random.Philox) -> Iterator[int]:
    while True:
        yield from generator.random_raw(64).tolist()
