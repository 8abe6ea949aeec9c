"""Batches as Grain datasets: a function from the number of a batch to the rows of the batch that one process gets."""

from collections.abc import Callable
from typing import Generic, TypeVar

import grain
import numpy as np

from mosaics_jax.errors import UserError

Batch = dict[str, np.ndarray]
Item = TypeVar("Item")

ENDLESS = 2**62  # the length of a dataset without an end


def batch_dataset(make_batch: Callable[[int], Item], length: int = ENDLESS) -> grain.IterDataset:
    """A dataset of ``make_batch(i)`` for i from 0 to ``length`` - 1. The state of its iterator is the next i.

    ``make_batch`` depends on i only, so that a restored iterator continues exactly, with any number of processes.
    """
    # Without threads: a batch is a copy of some kilobytes in memory, and an iterator without threads costs nothing.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.MapDataset.source(_Source(make_batch, length)).to_iter_dataset(options)


class _Source(Generic[Item]):
    """A random-access data source of Grain."""

    def __init__(self, make_batch: Callable[[int], Item], length: int):
        self._make_batch, self._length = make_batch, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        return self._make_batch(index)


def process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to a process: ``batch_size`` / ``process_count`` consecutive ones.

    Raises UserError if the rows do not divide among the processes.
    """
    if batch_size % process_count:
        raise UserError(f"a batch of {batch_size} does not divide among {process_count} processes")
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)
