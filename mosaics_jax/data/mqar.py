"""Multi-query associative recall (Arora et al. 2024, arXiv 2312.04927): pairs of key and value, then keys to complete.

A sequence begins with the pairs: key, value, key, value, ... Each key comes once more after them, as a query, and the
target there is its value. All other tokens are random and carry no loss, the one after a query too.
"""

import dataclasses
import functools

import grain
import numpy as np

from mosaics_jax.data.automata import ORDER_BITS, random_bits
from mosaics_jax.data.windows import Batch
from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

BLOCK_WORDS = 2**22  # random words that are held at a time


@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """Which sequences. Keys are the tokens 1 to V/2 - 1, values V/2 to V - 1."""

    vocab_size: int = setting(8192, "V: tokens, half of them keys and half values")
    context_length: int = setting(64, "T: positions of a sequence (figure 2: 64 to 512)")
    num_pairs: int = setting(8, "pairs of key and value in a sequence (figure 2: 4 to 64)")
    power: float = setting(
        0.01, "a: a query takes the k-th place after the pairs, a place being two tokens, with weight k^(a - 1)"
    )

    def __post_init__(self) -> None:
        if self.num_pairs < 1 or self.power <= 0:
            raise ValueError(f"num_pairs={self.num_pairs} must be at least 1, and power={self.power} above 0")
        if self.context_length % 2 or self.context_length < 4 * self.num_pairs:
            raise ValueError(
                f"context_length={self.context_length} must be even and at least 4 num_pairs, {4 * self.num_pairs}: "
                "room for the pairs and, two tokens each, for the queries"
            )
        if self.vocab_size <= self.context_length:
            raise ValueError(f"vocab_size={self.vocab_size} must be above context_length={self.context_length}")


def sequences(config: MQARConfig, seed: int, count: int, start: int = 0) -> Batch:
    """Sequences ``start`` to ``start + count`` of ``seed``: ``inputs`` and ``targets``, int32 (count, T) each.

    A sequence depends on ``seed`` and its number alone. Targets are IGNORED where nothing is asked.
    """
    batch = {name: np.empty((count, config.context_length), np.int32) for name in ("inputs", "targets")}
    rows = max(1, BLOCK_WORDS // _words(config))
    for first in range(0, count, rows):
        block = slice(first, min(first + rows, count))
        batch["inputs"][block], batch["targets"][block] = _block(config, seed, start + first, block.stop - first)
    return batch


def training_batches(
    data: Batch, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset:
    """Endless batches of what ``sequences`` gave: ``inputs`` and ``targets``, int32 (B, T), B = batch_size / processes.

    Epochs follow each other without a seam, each in an order of its own that ``seed`` and its number alone decide. The
    iterator's state is the number of the next batch. Raises UserError if the batch does not divide.
    """
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} does not divide among {process_count} processes")
    source = _Training(data, batch_size, seed, process_index, process_count)
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


class _Training:
    def __init__(self, data: Batch, batch_size: int, seed: int, process_index: int, process_count: int):
        self._data, self._batch_size = data, batch_size
        self._count = len(data["inputs"])
        rows = batch_size // process_count
        self._rows = slice(process_index * rows, (process_index + 1) * rows)
        # Of two epochs: a batch may hold the end of one and the start of the next.
        self._order = functools.lru_cache(2)(lambda epoch: _order(seed, epoch, self._count))

    def __repr__(self) -> str:
        return f"MQAR({self._data['inputs'].shape}, batch={self._batch_size})"

    def __len__(self) -> int:
        return 2**62  # endless

    def __getitem__(self, index: int) -> Batch:
        places = np.arange(index * self._batch_size, (index + 1) * self._batch_size)[self._rows]
        rows = [self._order(place // self._count)[place % self._count] for place in places.tolist()]
        return {name: array[rows] for name, array in self._data.items()}


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(random_bits(seed, epoch, ORDER_BITS, count), kind="stable")


def _slots(config: MQARConfig) -> int:
    """Places for a query: every second position after the pairs."""
    return config.context_length // 2 - config.num_pairs


def _words(config: MQARConfig) -> int:
    """Random words that a sequence takes, a multiple of the four that Philox makes at a time."""
    return -(-(4 * config.num_pairs + _slots(config) + config.context_length) // 4) * 4


def _block(config: MQARConfig, seed: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    words, pairs, slots = _words(config), config.num_pairs, _slots(config)
    # Counter-based, and raw: a sequence's words are found by its number.
    generator = np.random.Philox(key=seed % 2**64, counter=start * words // 4)
    bits = generator.random_raw(count * words).reshape(count, words)
    ends = np.cumsum([2 * pairs, 2 * pairs, slots])
    for_keys, for_values, for_slots, for_rest = np.split(bits, ends, axis=1)

    half = config.vocab_size // 2
    keys = 1 + _distinct(for_keys, half - 1)
    values = half + _distinct(for_values, config.vocab_size - half)
    # The first of independent exponential clocks with rates p to ring, in their order, are draws from p without
    # replacement, one after the other.
    uniform = ((for_slots >> np.uint64(11)) + 0.5) * 2.0**-53
    clocks = -np.log(uniform) / np.arange(1, slots + 1) ** (config.power - 1)
    queries = 2 * pairs + 2 * np.argsort(clocks, axis=1, kind="stable")[:, :pairs]

    inputs = (for_rest[:, : config.context_length] % np.uint64(config.vocab_size)).astype(np.int32)
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(inputs, queries, keys.astype(np.int32), axis=1)
    targets = np.full_like(inputs, IGNORED)
    np.put_along_axis(targets, queries, values.astype(np.int32), axis=1)
    return inputs, targets


def _distinct(bits: np.ndarray, population: int) -> np.ndarray:
    """int64 (rows, n), n different numbers below ``population`` in random order; bits (rows, 2 n)."""
    count = bits.shape[1] // 2
    chosen = np.empty((len(bits), count), np.int64)
    # Floyd's algorithm: a draw that was drawn before gives way to the number that has just come into reach.
    for i in range(count):
        last = population - count + i
        drawn = (bits[:, i] % np.uint64(last + 1)).astype(np.int64)
        chosen[:, i] = np.where((chosen[:, :i] == drawn[:, None]).any(axis=1), last, drawn)
    return np.take_along_axis(chosen, np.argsort(bits[:, count:], axis=1, kind="stable"), axis=1)
