"""Selective scan: a diagonal state space whose step, input and output depend on the input (Gu & Dao 2023, Mamba).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t,    y_t = C_t h_t                                (eq. 2, algorithm 2)

Each of the C channels has Z states of its own with constant rates A < 0. The step delta_t > 0 differs by channel; B_t
and C_t are shared by the channels. As in the authors' code, A is discretised exactly and B to first order in the step.

Shapes here: I chunks, Q positions of a chunk, Z states of a channel.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.chunks import from_chunks, to_chunks
from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

CHUNK = 16  # positions of a chunk: backward recomputes the states of one chunk at a time, B Z C numbers per position


def selective_scan(
    x_BTC: Array,
    step_BTC: Array,
    rate_ZC: Array,
    input_BTZ: Array,
    output_BTZ: Array,
    state_BZC: Array | None = None,
) -> tuple[Array, Array]:
    """y_BTC in the dtype of ``x_BTC``, and the state after the last position in at least float32.

    step_BTC >= 0 is delta, rate_ZC <= 0 is A per unit of delta, input_BTZ is B and output_BTZ is C. ``state_BZC`` is
    the state before the first position (default: zeros), so that running position by position equals running the whole
    sequence at once. Computed step by step; backward recomputes the states of one chunk at a time.
    """
    return _run(_in_chunks, x_BTC, step_BTC, rate_ZC, input_BTZ, output_BTZ, state_BZC)


def selective_scan_naive(
    x_BTC: Array,
    step_BTC: Array,
    rate_ZC: Array,
    input_BTZ: Array,
    output_BTZ: Array,
    state_BZC: Array | None = None,
) -> tuple[Array, Array]:
    """`selective_scan` computed as sums over all pairs of positions."""
    return _run(_by_pairs, x_BTC, step_BTC, rate_ZC, input_BTZ, output_BTZ, state_BZC)


def _run(
    compute: Callable[..., tuple[Array, Array]],
    x_BTC: Array,
    step_BTC: Array,
    rate_ZC: Array,
    input_BTZ: Array,
    output_BTZ: Array,
    state_BZC: Array | None,
) -> tuple[Array, Array]:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    batch, _, channels = x_BTC.shape
    chex.assert_equal_shape([x_BTC, step_BTC])
    chex.assert_shape(rate_ZC, (None, channels))
    chex.assert_equal_shape([input_BTZ, output_BTZ])
    chex.assert_shape(input_BTZ, (*x_BTC.shape[:2], rate_ZC.shape[0]))
    dtype = accumulation_dtype(x_BTC)
    if state_BZC is None:
        state_BZC = jnp.zeros((batch, *rate_ZC.shape), dtype)
    chex.assert_shape(state_BZC, (batch, *rate_ZC.shape))
    inputs = tuple(a.astype(dtype) for a in (x_BTC, step_BTC, input_BTZ, output_BTZ))
    state_BZC, y_BTC = compute(state_BZC.astype(dtype), rate_ZC.astype(dtype), *inputs)
    return y_BTC.astype(x_BTC.dtype), state_BZC


def _by_pairs(
    state_BZC: Array, rate_ZC: Array, x_BTC: Array, step_BTC: Array, input_BTZ: Array, output_BTZ: Array
) -> tuple[Array, Array]:
    until_BTC = jnp.cumsum(step_BTC, axis=1)
    past_TT1 = jnp.tri(x_BTC.shape[1], dtype=bool)[:, :, None]
    since_BTTC = jnp.where(past_TT1, until_BTC[:, :, None] - until_BTC[:, None], 0.0)
    decay_BTTZC = jnp.where(past_TT1[..., None], jnp.exp(since_BTTC[:, :, :, None] * rate_ZC), 0.0)
    states_BTZC = jnp.einsum("btszc,bsz,bsc->btzc", decay_BTTZC, input_BTZ, step_BTC * x_BTC)
    states_BTZC += jnp.exp(until_BTC[:, :, None] * rate_ZC) * state_BZC[:, None]
    return states_BTZC[:, -1], jnp.einsum("btzc,btz->btc", states_BTZC, output_BTZ)


def _in_chunks(
    state_BZC: Array, rate_ZC: Array, x_BTC: Array, step_BTC: Array, input_BTZ: Array, output_BTZ: Array
) -> tuple[Array, Array]:
    time = x_BTC.shape[1]
    size = min(time, CHUNK)

    def chunk(state_BZC: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        return lax.scan(lambda state_BZC, position: _advance(state_BZC, rate_ZC, *position), state_BZC, inputs)

    # Padding has step 0, so that it does not change the state.
    inputs = tuple(to_chunks(a, size, axis=1) for a in (x_BTC, step_BTC, input_BTZ, output_BTZ))  # (I, Q, B, ...)
    state_BZC, y_IQBC = lax.scan(jax.checkpoint(chunk), state_BZC, inputs)
    return state_BZC, from_chunks(y_IQBC, time, axis=1)


@jax.custom_vjp
def _advance(
    state_BZC: Array, rate_ZC: Array, x_BC: Array, step_BC: Array, input_BZ: Array, output_BZ: Array
) -> tuple[Array, Array]:
    """The state after one position, and y_BC. The channels are the last axis, along which the processor vectorizes."""
    decay_BZC = jnp.exp(step_BC[:, None] * rate_ZC)
    state_BZC = decay_BZC * state_BZC + (step_BC * x_BC)[:, None] * input_BZ[..., None]
    return state_BZC, jnp.sum(state_BZC * output_BZ[..., None], axis=1)


def _advance_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Array, ...]:
    """Written by hand, to read the state few times: the gradient that JAX derives takes twice as long on a CPU."""
    state_BZC, rate_ZC, x_BC, step_BC, input_BZ, output_BZ = saved
    dstate_BZC, dy_BC = gradients
    decay_BZC = jnp.exp(step_BC[:, None] * rate_ZC)
    kept_BZC, added_BC = decay_BZC * state_BZC, step_BC * x_BC
    dstate_BZC += output_BZ[..., None] * dy_BC[:, None]
    dadded_BC = jnp.sum(dstate_BZC * input_BZ[..., None], axis=1)
    dexponent_BZC = dstate_BZC * kept_BZC
    doutput_BZ = jnp.einsum("bzc,bc->bz", kept_BZC, dy_BC) + input_BZ * jnp.sum(added_BC * dy_BC, axis=1, keepdims=True)
    return (
        decay_BZC * dstate_BZC,
        jnp.sum(dexponent_BZC * step_BC[:, None], axis=0),
        dadded_BC * step_BC,
        jnp.sum(dexponent_BZC * rate_ZC, axis=1) + dadded_BC * x_BC,
        jnp.einsum("bzc,bc->bz", dstate_BZC, added_BC),
        doutput_BZ,
    )


_advance.defvjp(lambda *inputs: (_advance(*inputs), inputs), _advance_backward)
