"""Multi-query associative recall (Arora et al. 2024, arXiv 2312.04927): pairs of key and value, then keys as queries.

A sequence begins with the pairs: key, value, key, value, ... Each key occurs once more after the pairs, as a query,
whose target is the value of the key. All other tokens, including the one after a query, are random and have no target.
"""

import dataclasses
import functools

import grain
import numpy as np

from mosaics_jax.data.batches import Batch, batch_dataset, process_rows
from mosaics_jax.data.random_bits import ORDER_STREAM, random_bits
from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

BLOCK_WORDS = 2**22  # random words in memory at a time


@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """The size of sequences. Keys are the tokens 1 to V/2 - 1, values the tokens V/2 to V - 1."""

    vocab_size: int = setting(8192, "V: tokens, half of them keys and half values")
    context_length: int = setting(64, "T: positions of a sequence (figure 2: 64 to 512)")
    num_pairs: int = setting(8, "pairs of key and value in a sequence (figure 2: 4 to 64)")
    power: float = setting(
        0.01, "a: a query takes the k-th slot after the pairs, a slot being two tokens, with weight k^(a - 1)"
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
    """Sequences ``start`` to ``start + count - 1`` of ``seed``: ``inputs`` and ``targets``, int32 (count, T) each.

    A sequence depends on ``seed`` and its number only. Targets are IGNORED at all positions but the queries.
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
    """Endless batches of the ``data`` that `sequences` returned: ``inputs`` and ``targets``, int32 (B, T) each.

    B = batch_size / process_count. Every epoch has its own order, which depends on ``seed`` and the number of the epoch
    only; a batch may hold the end of one epoch and the beginning of the next. The state of the iterator is the number
    of the next batch. Raises UserError if the batch does not divide among the processes.
    """
    process = process_rows(batch_size, process_index, process_count)
    count = len(data["inputs"])
    order = functools.lru_cache(2)(lambda epoch: _order(seed, epoch, count))  # two epochs may meet in a batch

    def make_batch(index: int) -> Batch:
        positions = np.arange(index * batch_size, (index + 1) * batch_size)[process]
        rows = [order(position // count)[position % count] for position in positions.tolist()]
        return {name: array[rows] for name, array in data.items()}

    return batch_dataset(make_batch)


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(random_bits(seed, epoch, count, ORDER_STREAM), kind="stable")


def _query_slots(config: MQARConfig) -> int:
    """The number of positions that a query may take: every second one after the pairs."""
    return config.context_length // 2 - config.num_pairs


def _words(config: MQARConfig) -> int:
    """Random words per sequence, a multiple of the four words that Philox makes at a time."""
    return -(-(4 * config.num_pairs + _query_slots(config) + config.context_length) // 4) * 4


def _block(config: MQARConfig, seed: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    words, pairs, slots = _words(config), config.num_pairs, _query_slots(config)
    # Philox is counter-based: the number of a sequence gives the counter of its first word.
    generator = np.random.Philox(key=seed % 2**64, counter=start * words // 4)
    bits = generator.random_raw(count * words).reshape(count, words)
    ends = np.cumsum([2 * pairs, 2 * pairs, slots])
    for_keys, for_values, for_slots, for_rest = np.split(bits, ends, axis=1)

    half = config.vocab_size // 2
    keys = 1 + _distinct(for_keys, half - 1)
    values = half + _distinct(for_values, config.vocab_size - half)
    # Draws without replacement with probabilities proportional to p: the order in which independent exponential clocks
    # with rates p ring.
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
    """int64 (rows, n): n different numbers below ``population`` in random order, from bits (rows, 2 n)."""
    count = bits.shape[1] // 2
    chosen = np.empty((len(bits), count), np.int64)
    # Floyd's algorithm: each draw is from a range that is one number larger; a repeated draw becomes that number.
    for i in range(count):
        last = population - count + i
        drawn = (bits[:, i] % np.uint64(last + 1)).astype(np.int64)
        chosen[:, i] = np.where((chosen[:, :i] == drawn[:, None]).any(axis=1), last, drawn)
    return np.take_along_axis(chosen, np.argsort(bits[:, count:], axis=1, kind="stable"), axis=1)
