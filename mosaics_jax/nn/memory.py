"""What a network remembers between chunks of a sequence, as a pytree that `extend` takes and gives back.

Rows of a batch may stand at different lengths: ``Span`` says for each row how much was fed and how much of the present
chunk is real. Chunks are padded on the right; padding is never remembered.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.shapes import Array


class Span(NamedTuple):
    """Where a chunk of T positions stands: ``length_B`` positions fed before it, ``valid_B`` of its own are real."""

    length_B: Array
    valid_B: Array


class KeyState(NamedTuple):
    """State of a key extractor: the leaky sum, and the last inputs that a convolution over time still needs.

    Without a leaky average nobody reads the sum.
    """

    sum_BHD: Array
    inputs_BSC: Array


class ContextualState(NamedTuple):
    """State of a contextual memory.

    Slot s >= 1 holds the pair (k_{s-1}, v_{s-1}), which is complete only when x_s arrives; slot 0 stays empty. The pair
    in waiting is the newest key and the part of its value that is known. ``query`` is there if queries have an
    extractor of their own. Pairs of unnormalized keys have one channel more than the head (`ops.gaussian_pair`).
    """

    key: KeyState
    pending_key_BHD: Array
    pending_value_BHD: Array
    keys_BHND: Array
    values_BHND: Array
    query: KeyState | None = None


class AttentionState(NamedTuple):
    """State of causal self-attention: slot s holds position s."""

    keys_BHND: Array
    values_BHND: Array


BlockState = tuple[Any, Any]  # the states of a block's two units


class Memory(NamedTuple):
    """State of a whole network: one entry a block, and the number of positions fed to each row."""

    blocks: tuple[Any, ...]
    length_B: Array


def last_valid(before: Array, sequence: Array, valid_B: Array) -> Array:
    """The state after ``valid_B`` steps: ``sequence`` (B, T, ...) at valid_B - 1, or ``before`` (B, ...) at 0."""
    if sequence.shape[1] == 1:
        fed = valid_B.reshape(-1, *[1] * (before.ndim - 1)) > 0
        return jnp.where(fed, sequence[:, 0], before.astype(sequence.dtype))
    states = jnp.concatenate([before[:, None].astype(sequence.dtype), sequence], axis=1)
    index = valid_B.reshape(-1, *[1] * (states.ndim - 1))
    return jnp.take_along_axis(states, index, axis=1)[:, 0]


def write_slots(store_BHND: Array, chunk_BTHD: Array, length_B: Array) -> Array:
    """Writes a chunk into the slots from ``length_B`` on. The caller sees to it that length + T <= N."""
    chunk_BHTD = jnp.swapaxes(chunk_BTHD, 1, 2).astype(store_BHND.dtype)
    if len(store_BHND) == 1:
        # Without the batch axis XLA writes in place on CPU; a vmapped or 4-D update copies the whole store.
        return lax.dynamic_update_slice(store_BHND[0], chunk_BHTD[0], (0, length_B[0], 0))[None]

    def write(store: Array, chunk: Array, start: Array) -> Array:
        return lax.dynamic_update_slice(store, chunk, (0, start, 0))

    return jax.vmap(write)(store_BHND, chunk_BHTD, length_B)


def is_store(path: Any) -> bool:
    """Whether a leaf of a `Memory`, by its path, grows with the number of stored positions (axis 2 is N)."""
    return getattr(path[-1], "name", None) in ("keys_BHND", "values_BHND")
