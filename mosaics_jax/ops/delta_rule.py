"""The delta rule: a matrix state that corrects its answer at each key instead of only adding to it.

    S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T,    y_t = S_t^T q_t

The write strengths are b_t (Schlag et al. 2021, eq. 24). The form in chunks is that of Yang et al. 2024 (arXiv
2406.06484, section 3.2): a chunk adds K^T U to the state, where U solves (I + L) U = diag(b) (V - K S), S is the state
before the chunk, and L holds b_t k_t . k_s below its diagonal. The inverses of I + L for all chunks are computed before
the loop over chunks, which then consists of matrix products only.

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

CHUNK = 32  # positions of a chunk, a power of 2


def delta_rule(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    strength_BTH: Array,
    state_BHDE: Array | None = None,
) -> tuple[Array, Array]:
    """Answers y_BTHE in the dtype of the values, and the state after the last position in at least float32.

    strength_BTH: b_t in [0, 1]. With keys of norm 1, the answer stored at a key becomes (1 - b) times itself plus b
    times the value. Position t reads its own key. ``state_BHDE`` is the state before the first position (default:
    zeros), so that running position by position equals running the whole sequence at once. Computed as one triangular
    system per chunk; the state is carried from chunk to chunk.
    """
    return _run(_in_chunks, queries_BTHD, keys_BTHD, values_BTHE, strength_BTH, state_BHDE)


def delta_rule_naive(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    strength_BTH: Array,
    state_BHDE: Array | None = None,
) -> tuple[Array, Array]:
    """`delta_rule` computed position by position."""
    return _run(_by_position, queries_BTHD, keys_BTHD, values_BTHE, strength_BTH, state_BHDE)


def _run(
    compute: Callable[..., tuple[Array, Array]],
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    strength_BTH: Array,
    state_BHDE: Array | None,
) -> tuple[Array, Array]:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    chex.assert_equal_shape([queries_BTHD, keys_BTHD])
    chex.assert_equal_shape_prefix([queries_BTHD, values_BTHE, strength_BTH], 3)
    chex.assert_rank(strength_BTH, 3)
    batch, _, heads, width = keys_BTHD.shape
    dtype = accumulation_dtype(queries_BTHD)
    if state_BHDE is None:
        state_BHDE = jnp.zeros((batch, heads, width, values_BTHE.shape[-1]), dtype)
    inputs = tuple(a.astype(dtype) for a in (queries_BTHD, keys_BTHD, values_BTHE, strength_BTH[..., None]))
    state_BHDE, answers_BTHE = compute(state_BHDE.astype(dtype), *inputs)
    return answers_BTHE.astype(values_BTHE.dtype), state_BHDE


def _by_position(
    state_BHDE: Array, queries_BTHD: Array, keys_BTHD: Array, values_BTHE: Array, strength_BTH1: Array
) -> tuple[Array, Array]:
    def step(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHD, key_BHD, value_BHE, strength_BH1 = inputs
        error_BHE = value_BHE - jnp.einsum("bhde,bhd->bhe", state_BHDE, key_BHD)
        state_BHDE += jnp.einsum("bhd,bhe->bhde", key_BHD, strength_BH1 * error_BHE)
        return state_BHDE, jnp.einsum("bhde,bhd->bhe", state_BHDE, query_BHD)

    inputs = tuple(jnp.swapaxes(a, 0, 1) for a in (queries_BTHD, keys_BTHD, values_BTHE, strength_BTH1))
    state_BHDE, answers_TBHE = lax.scan(step, state_BHDE, inputs)
    return state_BHDE, jnp.swapaxes(answers_TBHE, 0, 1)


def _in_chunks(
    state_BHDE: Array, queries_BTHD: Array, keys_BTHD: Array, values_BTHE: Array, strength_BTH1: Array
) -> tuple[Array, Array]:
    time = keys_BTHD.shape[1]
    size = min(CHUNK, 1 << (time - 1).bit_length())
    # Padding has strength 0, so that it does not change the state.
    chunks = (to_chunks(a, size, axis=3) for a in (queries_BTHD, keys_BTHD, values_BTHE, strength_BTH1))
    queries_IBHQD, keys_IBHQD, values_IBHQE, strength_IBHQ1 = chunks
    earlier_QQ = jnp.tri(size, k=-1, dtype=keys_IBHQD.dtype)
    products_IBHQQ = jnp.einsum("ibhqd,ibhkd->ibhqk", keys_IBHQD, keys_IBHQD)
    inverse_IBHQQ = unit_triangular_inverse(earlier_QQ * strength_IBHQ1 * products_IBHQQ)
    # U = inverse (b V) - inverse (b K) S. Only the second term needs the state, and so the loop over chunks.
    solved_values_IBHQE = jnp.einsum("ibhqk,ibhke->ibhqe", inverse_IBHQQ, strength_IBHQ1 * values_IBHQE)
    solved_keys_IBHQD = jnp.einsum("ibhqk,ibhkd->ibhqd", inverse_IBHQQ, strength_IBHQ1 * keys_IBHQD)

    def chunk(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHQD, key_BHQD, solved_value_BHQE, solved_key_BHQD = inputs
        writes_BHQE = solved_value_BHQE - jnp.einsum("bhqd,bhde->bhqe", solved_key_BHQD, state_BHDE)
        past_QQ = jnp.tri(size, dtype=key_BHQD.dtype)
        weights_BHQQ = past_QQ * jnp.einsum("bhqd,bhkd->bhqk", query_BHQD, key_BHQD)
        answers_BHQE = jnp.einsum("bhqd,bhde->bhqe", query_BHQD, state_BHDE)
        answers_BHQE += jnp.einsum("bhqk,bhke->bhqe", weights_BHQQ, writes_BHQE)
        return state_BHDE + jnp.einsum("bhqd,bhqe->bhde", key_BHQD, writes_BHQE), answers_BHQE

    inputs = (queries_IBHQD, keys_IBHQD, solved_values_IBHQE, solved_keys_IBHQD)
    state_BHDE, answers_IBHQE = lax.scan(jax.checkpoint(chunk), state_BHDE, inputs)
    return state_BHDE, from_chunks(answers_IBHQE, time, axis=3)


@jax.custom_vjp
def unit_triangular_inverse(lower: Array) -> Array:
    """(I + L)^-1 for strictly lower triangular matrices L (..., n, n), n a power of 2.

    By halves: the inverse of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. jax.scipy.linalg is not used: on
    CPU its batched triangular solver waits for threads, and two solvers that run at a time can take the threads from
    each other and wait forever (jaxlib 0.10, 2 cores).
    """
    size = lower.shape[-1]
    if size == 1:
        return jnp.ones_like(lower)
    half = size // 2
    first, last = unit_triangular_inverse(jnp.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    corner = -last @ lower[..., half:, :half] @ first
    return jnp.block([[first, jnp.zeros_like(first)], [corner, last]])


def _inverse_forward(lower: Array) -> tuple[Array, Array]:
    inverse = unit_triangular_inverse(lower)
    return inverse, inverse


def _inverse_backward(inverse: Array, dinverse: Array) -> tuple[Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (jnp.tril(-transposed @ dinverse @ transposed, k=-1),)


unit_triangular_inverse.defvjp(_inverse_forward, _inverse_backward)
