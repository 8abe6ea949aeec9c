"""Linear recurrence with a matrix state: what linear transformers, RetNet, GLA and Mamba have in common.

S_t = diag(a_t) S_{t-1} + k_t v_t^T and y_t = S_t^T q_t, with decays 0 < a_t <= 1 given as logarithms. Katharopoulos et
al. 2020 (linear attention, a = 1), Sun et al. 2023 (RetNet, one constant a head), Yang et al. 2024 (GLA, a decay for
each key channel and position, section 4: chunks).
"""

import enum

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

# Positions of a chunk, the fastest on CPU for heads of 16 channels.
CHUNK = 32  # where all channels of a head share a decay
CHANNEL_CHUNK = 8  # where each channel has its own: a number for each pair of positions and channel


class RecurrenceForm(enum.Enum):
    """How the recurrence is computed. AUTO: CHUNKED."""

    AUTO = "auto"
    NAIVE = "naive"  # position by position
    CHUNKED = "chunked"  # products within a chunk, the state carried from chunk to chunk


def linear_recurrence(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    log_decay: Array,
    state_BHDE: Array | None = None,
    form: RecurrenceForm = RecurrenceForm.AUTO,
) -> tuple[Array, Array]:
    """Answers y_BTHE in the type of the values, and the state after the last position in at least float32.

    log_decay: at most 0; (B, T, H, D), of size 1 along any axis that shares it, which saves time along B and D.
    Position t sees itself. The state (default: zeros) goes on from earlier positions, so that step by step equals all
    at once.
    """
    chex.assert_equal_shape([queries_BTHD, keys_BTHD])
    chex.assert_equal_shape_prefix([queries_BTHD, values_BTHE], 3)
    batch, time, heads, width = keys_BTHD.shape
    if log_decay.shape[-1] not in (1, width):
        raise ValueError(f"log_decay has {log_decay.shape[-1]} channels: 1 or {width} are needed")
    chex.assert_is_broadcastable(log_decay.shape, keys_BTHD.shape)
    log_decay = jnp.broadcast_to(log_decay, (log_decay.shape[0], time, *log_decay.shape[2:]))
    dtype = accumulation_dtype(queries_BTHD)
    if state_BHDE is None:
        state_BHDE = jnp.zeros((batch, heads, width, values_BTHE.shape[-1]), dtype)
    inputs = tuple(a.astype(dtype) for a in (queries_BTHD, keys_BTHD, values_BTHE, log_decay))
    run = _naive if form is RecurrenceForm.NAIVE else _chunked
    state_BHDE, answers_BTHE = run(state_BHDE.astype(dtype), *inputs)
    return answers_BTHE.astype(values_BTHE.dtype), state_BHDE


def _naive(state: Array, queries: Array, keys: Array, values: Array, log_decay: Array) -> tuple[Array, Array]:
    def step(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHD, key_BHD, value_BHE, log_decay_BHD = inputs
        state_BHDE = jnp.exp(log_decay_BHD)[..., None] * state_BHDE + key_BHD[..., None] * value_BHE[..., None, :]
        return state_BHDE, jnp.einsum("bhde,bhd->bhe", state_BHDE, query_BHD)

    state, answers = lax.scan(step, state, tuple(jnp.swapaxes(a, 0, 1) for a in (queries, keys, values, log_decay)))
    return state, jnp.swapaxes(answers, 0, 1)


def _chunked(state: Array, queries: Array, keys: Array, values: Array, log_decay: Array) -> tuple[Array, Array]:
    batch, time, heads, _ = keys.shape
    shared = log_decay.shape[-1] == 1
    size = min(time, CHUNK if shared else CHANNEL_CHUNK)
    chunks = -(-time // size)

    def cut(a: Array) -> Array:
        # Padding has decay 1 and key 0: it leaves the state as it is.
        a = jnp.pad(a, ((0, 0), (0, chunks * size - time), (0, 0), (0, 0)))
        return jnp.moveaxis(a.reshape(a.shape[0], chunks, size, *a.shape[2:]), (1, 3), (0, 2))

    def chunk(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHSD, key_BHSD, value_BHSE, total = inputs
        past = jnp.tri(size, dtype=bool)
        # Every exponent is at most 0: decays since an earlier position, never their inverse.
        if shared:
            since = jnp.where(past, total - jnp.swapaxes(total, 2, 3), -jnp.inf)
            weights = jnp.einsum("bhsd,bhtd->bhst", query_BHSD, key_BHSD) * jnp.exp(since)
        else:
            since = jnp.where(past[..., None], total[:, :, :, None] - total[:, :, None], -jnp.inf)
            weights = jnp.sum(query_BHSD[:, :, :, None] * key_BHSD[:, :, None] * jnp.exp(since), axis=-1)
        answers = jnp.einsum("bhst,bhte->bhse", weights, value_BHSE)
        answers += jnp.einsum("bhsd,bhde->bhse", query_BHSD * jnp.exp(total), state_BHDE)
        left = jnp.exp(total[:, :, -1:] - total)
        state_BHDE = jnp.swapaxes(jnp.exp(total[:, :, -1:]), 2, 3) * state_BHDE
        return state_BHDE + jnp.einsum("bhsd,bhse->bhde", left * key_BHSD, value_BHSE), answers

    # From the beginning of each chunk, the position included. Summed outside the loop: within, XLA would fuse the sums
    # into the exponentials and redo them for each pair of positions.
    totals = jnp.cumsum(cut(log_decay), axis=3)
    state, answers = lax.scan(jax.checkpoint(chunk), state, (*map(cut, (queries, keys, values)), totals))
    answers = jnp.moveaxis(answers, (0, 2), (1, 3)).reshape(batch, chunks * size, heads, -1)
    return state, answers[:, :time]
