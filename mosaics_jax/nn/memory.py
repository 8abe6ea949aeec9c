"""The state of a network between chunks of a sequence: a pytree that ``extend`` takes and returns.

The rows of a batch may have different lengths, and chunks are padded on the right. `Span` says for each row how long
the sequence is and how many positions of the chunk are valid. Padding does not affect the state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.shapes import Array


class Span(NamedTuple):
    """Where a chunk of T positions stands in its sequence.

    length_B: number of positions before the chunk. valid_B: number of positions of the chunk that are not padding. Both
    are int32.
    """

    length_B: Array
    valid_B: Array


class KeyState(NamedTuple):
    """State of a key extractor: the leaky sum, and the inputs at the last S - 1 positions for the convolution W_phi.

    Without a leaky average, the sum is not used.
    """

    sum_BHD: Array
    inputs_BSC: Array


class ContextualState(NamedTuple):
    """State of a contextual memory.

    Slot s >= 1 holds the pair (k_{s-1}, v_{s-1}), which is stored when x_s completes its value; slot 0 stays empty. The
    pending pair is the newest key, and the term of its value that is known. ``query``: the state of the extractor of
    queries, if they have one of their own. Keys and values of unnormalized keys have D + 1 channels
    (`ops.gaussian_pair`).
    """

    key: KeyState
    pending_key_BHD: Array
    pending_value_BHD: Array
    keys_BHND: Array
    values_BHND: Array
    query: KeyState | None = None


class AttentionState(NamedTuple):
    """State of causal self-attention: slot s holds the key and value of position s."""

    keys_BHND: Array
    values_BHND: Array


BlockState = tuple[Any, Any]  # the states of the two units of a block


class Memory(NamedTuple):
    """State of a whole network: the states of all blocks, and the number of positions fed to each row."""

    blocks: tuple[Any, ...]
    length_B: Array


def last_valid(before: Array, sequence: Array, valid_B: Array) -> Array:
    """The state after the valid positions of a chunk, (B, ...).

    before (B, ...): the state before the chunk. sequence (B, T, ...): the state after each position of the chunk.
    """
    if sequence.shape[1] == 1:
        is_valid = valid_B.reshape(-1, *[1] * (before.ndim - 1)) > 0
        return jnp.where(is_valid, sequence[:, 0], before.astype(sequence.dtype))
    states = jnp.concatenate([before[:, None].astype(sequence.dtype), sequence], axis=1)
    index = valid_B.reshape(-1, *[1] * (states.ndim - 1))
    return jnp.take_along_axis(states, index, axis=1)[:, 0]


def write_slots(store_BHND: Array, chunk_BTHD: Array, length_B: Array) -> Array:
    """``store_BHND`` with a chunk written into slots ``length_B`` to ``length_B`` + T, which must not exceed N."""
    chunk_BHTD = jnp.swapaxes(chunk_BTHD, 1, 2).astype(store_BHND.dtype)
    if len(store_BHND) == 1:
        # On CPU, XLA updates an array (H, N, D) in place, but copies all of an array with a batch axis.
        return lax.dynamic_update_slice(store_BHND[0], chunk_BHTD[0], (0, length_B[0], 0))[None]

    def write(store_HND: Array, chunk_HTD: Array, start: Array) -> Array:
        return lax.dynamic_update_slice(store_HND, chunk_HTD, (0, start, 0))

    return jax.vmap(write)(store_BHND, chunk_BHTD, length_B)


def holds_pairs(path: Any) -> bool:
    """Whether the leaf of a `Memory` at this tree path holds stored keys or values, (B, H, N, D)."""
    return getattr(path[-1], "name", None) in ("keys_BHND", "values_BHND")
