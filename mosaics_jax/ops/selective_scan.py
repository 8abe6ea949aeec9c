"""Selective scan: a diagonal state space whose step, input and output depend on the input (Gu & Dao 2023, Mamba).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t,    y_t = C_t h_t                                (eq. 2, algorithm 2)

Each of the C channels has N states of its own with constant rates A < 0; delta_t > 0 is a channel's step, and B_t, C_t
are common to the channels. A is discretised exactly, B to first order in the step, as in the authors' code.
"""

import enum

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

CHUNK = 16  # positions between the states that backward starts from: those in between, B N C numbers each, are remade


class SelectiveForm(enum.Enum):
    """How the scan is computed. AUTO: CHUNKED."""

    AUTO = "auto"
    NAIVE = "naive"  # the sum over all pairs of positions
    CHUNKED = "chunked"  # step by step; backward recomputes the states of a chunk at a time


def selective_scan(
    x_BTC: Array,
    step_BTC: Array,
    rate_NC: Array,
    input_BTN: Array,
    output_BTN: Array,
    state_BNC: Array | None = None,
    form: SelectiveForm = SelectiveForm.AUTO,
) -> tuple[Array, Array]:
    """y_BTC in the type of ``x``, and the state after the last position in at least float32.

    step >= 0 is delta, per position; rate <= 0 is A, ``input`` B and ``output`` C. The state (default: zeros) goes on
    from earlier positions, so that step by step equals all at once.
    """
    batch, _, channels = x_BTC.shape
    chex.assert_equal_shape([x_BTC, step_BTC])
    chex.assert_shape(rate_NC, (None, channels))
    chex.assert_equal_shape([input_BTN, output_BTN])
    chex.assert_shape(input_BTN, (*x_BTC.shape[:2], rate_NC.shape[0]))
    dtype = accumulation_dtype(x_BTC)
    if state_BNC is None:
        state_BNC = jnp.zeros((batch, *rate_NC.shape), dtype)
    chex.assert_shape(state_BNC, (batch, *rate_NC.shape))
    inputs = tuple(a.astype(dtype) for a in (x_BTC, step_BTC, input_BTN, output_BTN))
    run = _naive if form is SelectiveForm.NAIVE else _chunked
    state_BNC, y_BTC = run(state_BNC.astype(dtype), rate_NC.astype(dtype), *inputs)
    return y_BTC.astype(x_BTC.dtype), state_BNC


def _naive(state: Array, rate: Array, x: Array, step: Array, input_: Array, output: Array) -> tuple[Array, Array]:
    until_BTC = jnp.cumsum(step, axis=1)
    past = jnp.tri(x.shape[1], dtype=bool)[:, :, None]
    since_BTTC = jnp.where(past, until_BTC[:, :, None] - until_BTC[:, None], 0.0)
    decay_BTTNC = jnp.where(past[..., None], jnp.exp(since_BTTC[:, :, :, None] * rate), 0.0)
    states_BTNC = jnp.einsum("btsnc,bsn,bsc->btnc", decay_BTTNC, input_, step * x)
    states_BTNC += jnp.exp(until_BTC[:, :, None] * rate) * state[:, None]
    return states_BTNC[:, -1], jnp.einsum("btnc,btn->btc", states_BTNC, output)


def _chunked(state: Array, rate: Array, x: Array, step: Array, input_: Array, output: Array) -> tuple[Array, Array]:
    batch, time, channels = x.shape
    size = min(time, CHUNK)
    chunks = -(-time // size)

    def cut(a: Array) -> Array:
        # Padding has step 0: it leaves the state as it is.
        a = jnp.pad(a, ((0, 0), (0, chunks * size - time), (0, 0)))
        return jnp.moveaxis(a.reshape(batch, chunks, size, -1), 0, 2)

    def chunk(state_BNC: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        return lax.scan(lambda state_BNC, now: _advance(state_BNC, rate, *now), state_BNC, inputs)

    state, y = lax.scan(jax.checkpoint(chunk), state, tuple(map(cut, (x, step, input_, output))))
    return state, jnp.moveaxis(y, 2, 0).reshape(batch, chunks * size, channels)[:, :time]


@jax.custom_vjp
def _advance(
    state_BNC: Array, rate_NC: Array, x_BC: Array, step_BC: Array, input_BN: Array, output_BN: Array
) -> tuple[Array, Array]:
    """One position: the state after it, and y_BC. The channels come last, where the processor works on many at once."""
    decay_BNC = jnp.exp(step_BC[:, None] * rate_NC)
    state_BNC = decay_BNC * state_BNC + (step_BC * x_BC)[:, None] * input_BN[..., None]
    return state_BNC, jnp.sum(state_BNC * output_BN[..., None], axis=1)


def _advance_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Array, ...]:
    """By hand for its few passes over the state: the gradient that jax derives takes twice as long on a CPU."""
    state_BNC, rate_NC, x_BC, step_BC, input_BN, output_BN = saved
    dstate_BNC, dy_BC = gradients
    decay_BNC = jnp.exp(step_BC[:, None] * rate_NC)
    kept_BNC, added_BC = decay_BNC * state_BNC, step_BC * x_BC
    dstate_BNC += output_BN[..., None] * dy_BC[:, None]
    dadded_BC = jnp.sum(dstate_BNC * input_BN[..., None], axis=1)
    dexponent_BNC = dstate_BNC * kept_BNC
    doutput_BN = jnp.einsum("bnc,bc->bn", kept_BNC, dy_BC) + input_BN * jnp.sum(added_BC * dy_BC, axis=1, keepdims=True)
    return (
        decay_BNC * dstate_BNC,
        jnp.sum(dexponent_BNC * step_BC[:, None], axis=0),
        dadded_BC * step_BC,
        jnp.sum(dexponent_BNC * rate_NC, axis=1) + dadded_BC * x_BC,
        jnp.einsum("bnc,bc->bn", dstate_BNC, added_BC),
        doutput_BN,
    )


_advance.defvjp(lambda *inputs: (_advance(*inputs), inputs), _advance_backward)
