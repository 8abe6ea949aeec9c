"""Linear recurrence with a matrix state, shared by linear transformers, RetNet, GLA and Mamba.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t

The decays 0 < a_t <= 1 are given as logarithms. Katharopoulos et al. 2020 (linear attention: a = 1), Sun et al. 2023
(RetNet: one constant a per head), Yang et al. 2024 (GLA: one decay per key channel and position; chunks, section 4).

Shapes here: E width of a value, I chunks, Q positions of a chunk.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.chunks import from_chunks, to_chunks
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

# Positions of a chunk. Both are the fastest on CPU for heads of 16 channels.
CHUNK = 32  # where all channels of a head share a decay
CHANNEL_CHUNK = 8  # where each channel has its own decay: one exponential per pair of positions and channel


def linear_recurrence(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    log_decay_BTHD: Array,
    state_BHDE: Array | None = None,
) -> tuple[Array, Array]:
    """Answers y_BTHE in the dtype of the values, and the state after the last position in at least float32.

    log_decay_BTHD: log a_t, at most 0. Its size is 1 along each axis that shares one decay, which saves time along B
    and D. Position t reads its own key. ``state_BHDE`` is the state before the first position (default: zeros), so that
    running position by position equals running the whole sequence at once. Computed in matrix products within chunks;
    the state is carried from chunk to chunk. Raises ValueError if the decays have neither 1 nor D channels.
    """
    return _run(_in_chunks, queries_BTHD, keys_BTHD, values_BTHE, log_decay_BTHD, state_BHDE)


def linear_recurrence_naive(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    log_decay_BTHD: Array,
    state_BHDE: Array | None = None,
) -> tuple[Array, Array]:
    """`linear_recurrence` computed position by position."""
    return _run(_by_position, queries_BTHD, keys_BTHD, values_BTHE, log_decay_BTHD, state_BHDE)


def _run(
    compute: Callable[..., tuple[Array, Array]],
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    log_decay_BTHD: Array,
    state_BHDE: Array | None,
) -> tuple[Array, Array]:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    chex.assert_equal_shape([queries_BTHD, keys_BTHD])
    chex.assert_equal_shape_prefix([queries_BTHD, values_BTHE], 3)
    batch, time, heads, width = keys_BTHD.shape
    if log_decay_BTHD.shape[-1] not in (1, width):
        raise ValueError(f"log_decay has {log_decay_BTHD.shape[-1]} channels: 1 or {width} are needed")
    chex.assert_is_broadcastable(log_decay_BTHD.shape, keys_BTHD.shape)
    log_decay_BTHD = jnp.broadcast_to(log_decay_BTHD, (log_decay_BTHD.shape[0], time, *log_decay_BTHD.shape[2:]))
    dtype = accumulation_dtype(queries_BTHD)
    if state_BHDE is None:
        state_BHDE = jnp.zeros((batch, heads, width, values_BTHE.shape[-1]), dtype)
    inputs = tuple(a.astype(dtype) for a in (queries_BTHD, keys_BTHD, values_BTHE, log_decay_BTHD))
    state_BHDE, answers_BTHE = compute(state_BHDE.astype(dtype), *inputs)
    return answers_BTHE.astype(values_BTHE.dtype), state_BHDE


def _by_position(
    state_BHDE: Array, queries_BTHD: Array, keys_BTHD: Array, values_BTHE: Array, log_decay_BTHD: Array
) -> tuple[Array, Array]:
    def step(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHD, key_BHD, value_BHE, log_decay_BHD = inputs
        state_BHDE = jnp.exp(log_decay_BHD)[..., None] * state_BHDE + key_BHD[..., None] * value_BHE[..., None, :]
        return state_BHDE, jnp.einsum("bhde,bhd->bhe", state_BHDE, query_BHD)

    inputs = tuple(jnp.swapaxes(a, 0, 1) for a in (queries_BTHD, keys_BTHD, values_BTHE, log_decay_BTHD))
    state_BHDE, answers_TBHE = lax.scan(step, state_BHDE, inputs)
    return state_BHDE, jnp.swapaxes(answers_TBHE, 0, 1)


def _in_chunks(
    state_BHDE: Array, queries_BTHD: Array, keys_BTHD: Array, values_BTHE: Array, log_decay_BTHD: Array
) -> tuple[Array, Array]:
    time = keys_BTHD.shape[1]
    shared = log_decay_BTHD.shape[-1] == 1
    size = min(time, CHUNK if shared else CHANNEL_CHUNK)

    def chunk(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHQD, key_BHQD, value_BHQE, total_BHQD = inputs
        past_QQ = jnp.tri(size, dtype=bool)
        # Every exponent is at most 0: a decay since an earlier position, never the inverse of a decay.
        if shared:
            since_BHQQ = jnp.where(past_QQ, total_BHQD - jnp.swapaxes(total_BHQD, 2, 3), -jnp.inf)
            weights_BHQQ = jnp.einsum("bhqd,bhkd->bhqk", query_BHQD, key_BHQD) * jnp.exp(since_BHQQ)
        else:
            since_BHQQD = jnp.where(past_QQ[..., None], total_BHQD[:, :, :, None] - total_BHQD[:, :, None], -jnp.inf)
            products_BHQQD = query_BHQD[:, :, :, None] * key_BHQD[:, :, None]
            weights_BHQQ = jnp.sum(products_BHQQD * jnp.exp(since_BHQQD), axis=-1)
        answers_BHQE = jnp.einsum("bhqk,bhke->bhqe", weights_BHQQ, value_BHQE)
        answers_BHQE += jnp.einsum("bhqd,bhde->bhqe", query_BHQD * jnp.exp(total_BHQD), state_BHDE)
        remaining_BHQD = jnp.exp(total_BHQD[:, :, -1:] - total_BHQD)
        state_BHDE = jnp.swapaxes(jnp.exp(total_BHQD[:, :, -1:]), 2, 3) * state_BHDE
        return state_BHDE + jnp.einsum("bhqd,bhqe->bhde", remaining_BHQD * key_BHQD, value_BHQE), answers_BHQE

    # Padding has decay 1 and key 0, so that it does not change the state.
    chunks = (to_chunks(a, size, axis=3) for a in (queries_BTHD, keys_BTHD, values_BTHE, log_decay_BTHD))
    queries_IBHQD, keys_IBHQD, values_IBHQE, log_decay_IBHQD = chunks
    # Log decay from the beginning of a chunk through each of its positions. The cumulative sums stand outside the loop:
    # inside, XLA would fuse them into the exponentials and recompute them for each pair of positions.
    total_IBHQD = jnp.cumsum(log_decay_IBHQD, axis=3)
    inputs = (queries_IBHQD, keys_IBHQD, values_IBHQE, total_IBHQD)
    state_BHDE, answers_IBHQE = lax.scan(jax.checkpoint(chunk), state_BHDE, inputs)
    return state_BHDE, from_chunks(answers_IBHQE, time, axis=3)
