"""Batches of windows over a stream of tokens, as Grain datasets.

A batch is a dict of ``inputs`` and ``targets``, int32 (B, T) each. The target of a position is the next token.
"""

import grain
import numpy as np

from mosaics_jax.data.batches import Batch, batch_dataset, process_rows
from mosaics_jax.data.random_bits import random_bits
from mosaics_jax.errors import UserError
from mosaics_jax.shapes import IGNORED


def random_windows(
    tokens: np.ndarray, context: int, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset:
    """Endless training batches of windows at uniformly random positions, with replacement (the papers' recipe).

    tokens: (n,) of an integer type; ``context`` is T. Batch i depends on ``seed`` and i only. ``batch_size`` counts the
    windows of all processes; each process gets B = batch_size / process_count consecutive rows. The state of the
    iterator is the number of the next batch. Raises UserError if n < T + 1 or if the batch does not divide.
    """
    tokens = _checked(tokens, context)
    rows = process_rows(batch_size, process_index, process_count)
    offsets = np.arange(context + 1)

    def make_batch(index: int) -> Batch:
        bits = random_bits(seed, index, batch_size)[rows]
        # The bias of the remainder is below n / 2**64.
        starts = (bits % np.uint64(len(tokens) - context)).astype(np.int64)
        windows = tokens[starts[:, None] + offsets].astype(np.int32)
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}

    return batch_dataset(make_batch)


def evaluation_windows(
    tokens: np.ndarray,
    context: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    max_tokens: int | None = None,
) -> grain.IterDataset:
    """Finite batches that predict each token but the first exactly once, or the first ``max_tokens`` of those tokens.

    The windows are consecutive and do not overlap. The last window and the last batch are filled up with targets
    IGNORED, so that all processes get the same number of batches, all of one shape. Arguments and errors are those of
    `random_windows`.
    """
    predicted = min(len(tokens) - 1, len(tokens) - 1 if max_tokens is None else max_tokens)
    tokens = _checked(tokens, context)
    process = process_rows(batch_size, process_index, process_count)
    offsets = np.arange(context + 1)

    def make_batch(index: int) -> Batch:
        rows = np.arange(index * batch_size, (index + 1) * batch_size)[process]
        positions = rows[:, None] * context + offsets  # in the stream: those of the inputs and of the last target
        windows = tokens[np.minimum(positions, predicted)].astype(np.int32)
        targets = np.where(positions[:, 1:] <= predicted, windows[:, 1:], IGNORED).astype(np.int32)
        return {"inputs": windows[:, :-1], "targets": targets}

    return batch_dataset(make_batch, length=-(-predicted // (context * batch_size)))


def _checked(tokens: np.ndarray, context: int) -> np.ndarray:
    if len(tokens) < context + 1:
        raise UserError(
            f"the text is too short: {len(tokens)} tokens, and one window of context {context} "
            f"needs {context + 1}; use more text or a shorter context"
        )
    return np.asarray(tokens)  # a plain view: indexing a memmap object is slower
