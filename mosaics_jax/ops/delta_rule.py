"""The delta rule: a matrix state that corrects what it answers at each key, instead of only adding to it.

S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T and y_t = S_t^T q_t, with write strengths b_t (Schlag et al. 2021, eq.
24). In chunks by Yang et al. 2024 (arXiv 2406.06484, section 3.2): what a chunk adds to the state is K^T U, where U
solves (I + L) U = diag(b) (V - K S) for the state S before the chunk, and L holds b_t k_t.k_s below the diagonal.
"""

import enum

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

CHUNK = 32


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
    size = min(time, CHUNK)
    chunks = -(-time // size)

    def cut(a: Array) -> Array:
        # Padding has strength 0: it leaves the state as it is.
        a = jnp.pad(a, ((0, 0), (0, chunks * size - time), (0, 0), (0, 0)))
        return jnp.moveaxis(a.reshape(batch, chunks, size, heads, -1), (1, 3), (0, 2))

    def chunk(state_BHDE: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        query_BHSD, key_BHSD, value_BHSE, strength_BHS1 = inputs
        earlier = jnp.tri(size, k=-1, dtype=key_BHSD.dtype)
        system = strength_BHS1 * earlier * jnp.einsum("bhsd,bhtd->bhst", key_BHSD, key_BHSD)
        error_BHSE = strength_BHS1 * (value_BHSE - jnp.einsum("bhsd,bhde->bhse", key_BHSD, state_BHDE))
        # unit_diagonal: the solver takes the ones of I + L as read.
        writes_BHSE = solve_triangular(system, error_BHSE, lower=True, unit_diagonal=True)
        weights = jnp.tri(size, dtype=key_BHSD.dtype) * jnp.einsum("bhsd,bhtd->bhst", query_BHSD, key_BHSD)
        answers = jnp.einsum("bhsd,bhde->bhse", query_BHSD, state_BHDE)
        answers += jnp.einsum("bhst,bhte->bhse", weights, writes_BHSE)
        return state_BHDE + jnp.einsum("bhsd,bhse->bhde", key_BHSD, writes_BHSE), answers

    state, answers = lax.scan(jax.checkpoint(chunk), state, tuple(map(cut, (queries, keys, values, strength))))
    answers = jnp.moveaxis(answers, (0, 2), (1, 3)).reshape(batch, chunks * size, heads, -1)
    return state, answers[:, :time]
