"""The delta rule: a matrix state that corrects what it answers at each key, instead of only adding to it.

S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T and y_t = S_t^T q_t, with write strengths b_t (Schlag et al. 2021, eq.
24). In chunks by Yang et al. 2024 (arXiv 2406.06484, section 3.2): what a chunk adds to the state is K^T U, where U
solves (I + L) U = diag(b) (V - K S) for the state S before the chunk, and L holds b_t k_t.k_s below the diagonal. All
inverses of I + L are made beforehand, so that chunk after chunk there are products alone.
"""

import enum

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

CHUNK = 32  # a power of 2


class DeltaForm(enum.Enum):
    """How the delta rule is computed. AUTO: CHUNKED."""

    AUTO = "auto"
    NAIVE = "naive"  # position by position
    CHUNKED = "chunked"  # a triangular system within each chunk, the state carried from chunk to chunk


def delta_rule(
    queries_BTHD: Array,
    keys_BTHD: Array,
    values_BTHE: Array,
    strength_BTH: Array,
    state_BHDE: Array | None = None,
    form: DeltaForm = DeltaForm.AUTO,
) -> tuple[Array, Array]:
    """Answers y_BTHE in the type of the values, and the state after the last position in at least float32.

    strength_BTH: b in [0, 1] with unit keys replaces the stored answer by a mixture of it and the value. Position t
    sees itself. The state (default: zeros) goes on from earlier positions, so that step by step equals all at once.
    """
    chex.assert_equal_shape([queries_BTHD, keys_BTHD])
    chex.assert_equal_shape_prefix([queries_BTHD, values_BTHE, strength_BTH], 3)
    chex.assert_rank(strength_BTH, 3)
    batch, _, heads, width = keys_BTHD.shape
    dtype = accumulation_dtype(queries_BTHD)
    if state_BHDE is None:
        state_BHDE = jnp.zeros((batch, heads, width, values_BTHE.shape[-1]), dtype)
    inputs = tuple(a.astype(dtype) for a in (queries_BTHD, keys_BTHD, values_BTHE, strength_BTH[..., None]))
    run = _naive if form is DeltaForm.NAIVE else _chunked
    state_BHDE, answers_BTHE = run(state_BHDE.astype(dtype), *inputs)
    return answers_BTHE.astype(values_BTHE.dtype), state_BHDE


def _naive(state: Array, queries: Array, keys: Array, values: Array, strength: Array) -> tuple[Array, Array]:
    def step(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHD, key_BHD, value_BHE, strength_BH1 = inputs
        error_BHE = value_BHE - jnp.einsum("bhde,bhd->bhe", state_BHDE, key_BHD)
        state_BHDE += jnp.einsum("bhd,bhe->bhde", key_BHD, strength_BH1 * error_BHE)
        return state_BHDE, jnp.einsum("bhde,bhd->bhe", state_BHDE, query_BHD)

    state, answers = lax.scan(step, state, tuple(jnp.swapaxes(a, 0, 1) for a in (queries, keys, values, strength)))
    return state, jnp.swapaxes(answers, 0, 1)


def _chunked(state: Array, queries: Array, keys: Array, values: Array, strength: Array) -> tuple[Array, Array]:
    batch, time, heads, _ = keys.shape
    size = min(CHUNK, 1 << (time - 1).bit_length())
    chunks = -(-time // size)

    def cut(a: Array) -> Array:
        # Padding has strength 0: it leaves the state as it is.
        a = jnp.pad(a, ((0, 0), (0, chunks * size - time), (0, 0), (0, 0)))
        return jnp.moveaxis(a.reshape(batch, chunks, size, heads, -1), (1, 3), (0, 2))

    queries, keys, values, strength = map(cut, (queries, keys, values, strength))  # (chunks, B, H, S, ...)
    later = jnp.tri(size, k=-1, dtype=keys.dtype)
    inverse = unit_triangular_inverse(later * strength * jnp.einsum("nbhsd,nbhtd->nbhst", keys, keys))
    # The writes are U = inverse (b V) - inverse (b K) S.
    of_values = jnp.einsum("nbhst,nbhte->nbhse", inverse, strength * values)
    of_keys = jnp.einsum("nbhst,nbhtd->nbhsd", inverse, strength * keys)

    def chunk(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHSD, key_BHSD, of_values_BHSE, of_keys_BHSD = inputs
        writes_BHSE = of_values_BHSE - jnp.einsum("bhsd,bhde->bhse", of_keys_BHSD, state_BHDE)
        weights = jnp.tri(size, dtype=key_BHSD.dtype) * jnp.einsum("bhsd,bhtd->bhst", query_BHSD, key_BHSD)
        answers = jnp.einsum("bhsd,bhde->bhse", query_BHSD, state_BHDE)
        answers += jnp.einsum("bhst,bhte->bhse", weights, writes_BHSE)
        return state_BHDE + jnp.einsum("bhsd,bhse->bhde", key_BHSD, writes_BHSE), answers

    state, answers = lax.scan(jax.checkpoint(chunk), state, (queries, keys, of_values, of_keys))
    answers = jnp.moveaxis(answers, (0, 2), (1, 3)).reshape(batch, chunks * size, heads, -1)
    return state, answers[:, :time]


@jax.custom_vjp
def unit_triangular_inverse(below: Array) -> Array:
    """(I + L)^-1 for matrices L (..., n, n) with entries below the diagonal alone, n a power of 2.

    By halves: the inverse of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. Not by jax.scipy.linalg, whose
    batched triangular solver on CPU waits for threads that two such solvers at a time take from each other for ever
    (jaxlib 0.10, 2 cores).
    """
    size = below.shape[-1]
    if size == 1:
        return jnp.ones_like(below)
    half = size // 2
    first, last = unit_triangular_inverse(jnp.stack([below[..., :half, :half], below[..., half:, half:]]))
    corner = -last @ below[..., half:, :half] @ first
    return jnp.block([[first, jnp.zeros_like(first)], [corner, last]])


def _inverse_forward(below: Array) -> tuple[Array, Array]:
    inverse = unit_triangular_inverse(below)
    return inverse, inverse


def _inverse_backward(inverse: Array, gradient: Array) -> tuple[Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (jnp.tril(-transposed @ gradient @ transposed, k=-1),)


unit_triangular_inverse.defvjp(_inverse_forward, _inverse_backward)
