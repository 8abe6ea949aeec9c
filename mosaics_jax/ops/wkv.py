"""The WKV operator of RWKV v4 (Peng et al. 2023, arXiv 2305.13048, eq. 16): an average of values, channel by channel.

    y_t = (sum_{i<t} exp(k_i - (t-1-i) w) v_i + exp(k_t + u) v_t) / (the same without v)

with a decay w >= 0 per position and a bonus u for the present one. No exponent is ever positive: both sums are kept
relative to the largest weight so far, so that keys of any size give finite answers and gradients.
"""

import enum
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

NOTHING = -1e38  # log weight of an empty past: below any key's, and finite, or its difference with itself would be NaN


class WKVForm(enum.Enum):
    """How the sums are computed. AUTO: SCAN."""

    AUTO = "auto"
    NAIVE = "naive"  # the weights of all pairs of positions
    SCAN = "scan"  # step by step; backward recomputes the weights of a step


class WKVState(NamedTuple):
    """Both sums after a position, divided by exp(``largest``), which no gradient passes: it cancels in the answers."""

    weighted_BC: Array
    weights_BC: Array
    largest_BC: Array


def wkv(
    keys_BTC: Array,
    values_BTC: Array,
    decay_C: Array,
    bonus_C: Array,
    state: WKVState | None = None,
    form: WKVForm = WKVForm.AUTO,
) -> tuple[Array, WKVState]:
    """y_BTC in the type of the values, and the state after the last position in at least float32.

    The state (default: an empty past) goes on from earlier positions, so that step by step equals all at once.
    """
    chex.assert_equal_shape([keys_BTC, values_BTC])
    batch, _, channels = keys_BTC.shape
    chex.assert_shape([decay_C, bonus_C], (channels,))
    dtype = accumulation_dtype(keys_BTC)
    if state is None:
        empty_BC = jnp.zeros((batch, channels), dtype)
        state = WKVState(empty_BC, empty_BC, empty_BC + NOTHING)
    chex.assert_shape(list(state), (batch, channels))
    weighted_BC, weights_BC, largest_BC = (a.astype(dtype) for a in state)
    state = WKVState(weighted_BC, weights_BC, lax.stop_gradient(largest_BC))
    inputs = tuple(a.astype(dtype) for a in (keys_BTC, values_BTC, decay_C, bonus_C))
    run = _naive if form is WKVForm.NAIVE else _scan
    state, y_BTC = run(state, *inputs)
    return y_BTC.astype(values_BTC.dtype), state


def _naive(state: WKVState, keys: Array, values: Array, decay: Array, bonus: Array) -> tuple[WKVState, Array]:
    time = keys.shape[1]

    def average(log_weights_BRTC: Array, log_past_BRC: Array) -> WKVState:
        """Sums of each row R over positions and the past before them; a log weight of -inf leaves a position out."""
        largest_BRC = lax.stop_gradient(jnp.maximum(jnp.max(log_weights_BRTC, axis=2), log_past_BRC))
        weights_BRTC = jnp.exp(log_weights_BRTC - largest_BRC[:, :, None])
        past_BRC = jnp.exp(log_past_BRC - largest_BRC)
        weighted = jnp.einsum("brtc,btc->brc", weights_BRTC, values) + past_BRC * state.weighted_BC[:, None]
        return WKVState(weighted, weights_BRTC.sum(axis=2) + past_BRC * state.weights_BC[:, None], largest_BRC)

    age_TT = jnp.arange(time)[:, None] - 1 - jnp.arange(time)
    past_TT1, now_TT1 = (age_TT >= 0)[..., None], (age_TT == -1)[..., None]
    faded_BTTC = keys[:, None] - jnp.maximum(age_TT, 0)[..., None] * decay
    log_weights_BTTC = jnp.where(past_TT1, faded_BTTC, jnp.where(now_TT1, keys[:, None] + bonus, -jnp.inf))
    seen = average(log_weights_BTTC, state.largest_BC[:, None] - jnp.arange(time)[:, None] * decay)
    last_BTC = keys - (time - 1 - jnp.arange(time))[:, None] * decay
    after = average(last_BTC[:, None], state.largest_BC[:, None] - time * decay)
    return WKVState(*(a[:, 0] for a in after)), seen.weighted_BC / seen.weights_BC


def _scan(state: WKVState, keys: Array, values: Array, decay: Array, bonus: Array) -> tuple[WKVState, Array]:
    def add(past: WKVState, log_weight_BC: Array, value_BC: Array) -> WKVState:
        largest_BC = lax.stop_gradient(jnp.maximum(past.largest_BC, log_weight_BC))
        kept_BC, added_BC = jnp.exp(past.largest_BC - largest_BC), jnp.exp(log_weight_BC - largest_BC)
        return WKVState(
            kept_BC * past.weighted_BC + added_BC * value_BC, kept_BC * past.weights_BC + added_BC, largest_BC
        )

    def step(past: WKVState, now: tuple[Array, Array]) -> tuple[WKVState, Array]:
        key_BC, value_BC = now
        seen = add(past, key_BC + bonus, value_BC)
        after = add(past._replace(largest_BC=past.largest_BC - decay), key_BC, value_BC)
        return after, seen.weighted_BC / seen.weights_BC

    inputs = (jnp.swapaxes(keys, 0, 1), jnp.swapaxes(values, 0, 1))
    state, y = lax.scan(jax.checkpoint(step, prevent_cse=False), state, inputs)
    return state, jnp.swapaxes(y, 0, 1)
