"""Batches of windows over a stream of tokens, as Grain datasets.

A batch is a dict of ``inputs`` and ``targets``, int32 (B, T) each; a target is the token one place after its input.
"""

import grain
import numpy as np

from mosaics_jax.errors import UserError
from mosaics_jax.shapes import IGNORED

Batch = dict[str, np.ndarray]


def random_windows(
    tokens: np.ndarray, context: int, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset:
    """Endless training batches: windows at uniformly random places, with replacement (the papers' recipe).

    Batch i depends on ``seed`` and i alone. ``batch_size`` counts the windows of all processes; each process gets its
    own run of B = batch_size / process_count rows. The iterator's state is the number of the next batch.
    ``tokens``: (n,) of an integer type; ``context`` is T. Raises UserError if n < T + 1 or the batch does not divide.
    """
    return _dataset(_RandomWindows(tokens, context, batch_size, seed, process_index, process_count))


def evaluation_windows(
    tokens: np.ndarray,
    context: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_tokens: int | None = None,
) -> grain.IterDataset:
    """Finite batches that predict every token but the first exactly once, or the first ``max_tokens`` of those.

    Windows follow each other without overlap. What is missing of the last window and of the last batch has the target
    IGNORED, so that the batches of all processes have one shape and one number. Arguments and errors as above.
    """
    return _dataset(_EvaluationWindows(tokens, context, batch_size, process_index, process_count, max_tokens))


def _dataset(source: "_Windows") -> grain.IterDataset:
    # No threads: a batch is a gather of some kilobytes from memory, and an iterator without threads is free to make.
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


class _Windows:
    """What both sources share; an item is the part of a batch that belongs to this process."""

    def __init__(self, tokens: np.ndarray, context: int, batch_size: int, process_index: int, process_count: int):
        if len(tokens) < context + 1:
            raise UserError(
                f"the text is too short: {len(tokens)} tokens, and one window of context {context} "
                f"needs {context + 1}; use more text or a shorter context"
            )
        if batch_size % process_count:
            raise UserError(f"a batch of {batch_size} does not divide among {process_count} processes")
        self._tokens = np.asarray(tokens)  # a plain view: indexing a memmap object is slower
        self._context = context
        self._batch_size = batch_size
        rows = batch_size // process_count
        self._rows = slice(process_index * rows, (process_index + 1) * rows)
        self._offsets = np.arange(context + 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(tokens={len(self._tokens)}, context={self._context}, batch={self._batch_size})"


class _RandomWindows(_Windows):
    def __init__(
        self, tokens: np.ndarray, context: int, batch_size: int, seed: int, process_index: int, process_count: int
    ):
        super().__init__(tokens, context, batch_size, process_index, process_count)
        self._seed = seed % 2**64

    def __len__(self) -> int:
        return 2**62  # endless

    def __getitem__(self, index: int) -> Batch:
        # Counter-based, and raw: the bits of Philox are fixed, what numpy's distributions make of them is not.
        bits = np.random.Philox(key=np.array([self._seed, index], np.uint64)).random_raw(self._batch_size)
        # The bias of the remainder is below n / 2**64.
        starts = (bits[self._rows] % np.uint64(len(self._tokens) - self._context)).astype(np.int64)
        windows = self._tokens[starts[:, None] + self._offsets].astype(np.int32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


class _EvaluationWindows(_Windows):
    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        max_tokens: int | None,
    ):
        super().__init__(tokens, context, batch_size, process_index, process_count)
        self._predicted = min(len(tokens) - 1, len(tokens) - 1 if max_tokens is None else max_tokens)

    def __len__(self) -> int:
        return -(-self._predicted // (self._context * self._batch_size))

    def __getitem__(self, index: int) -> Batch:
        rows = np.arange(index * self._batch_size, (index + 1) * self._batch_size)[self._rows]
        places = rows[:, None] * self._context + self._offsets  # of the inputs, and the last target, in the stream
        windows = self._tokens[np.minimum(places, self._predicted)].astype(np.int32)
        targets = np.where(places[:, 1:] <= self._predicted, windows[:, 1:], IGNORED).astype(np.int32)
        return {"inputs": windows[:, :-1], "targets": targets}
