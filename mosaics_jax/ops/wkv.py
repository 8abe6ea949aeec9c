"""The WKV operator of RWKV v4 (Peng et al. 2023, arXiv 2305.13048, eq. 16): a weighted average of values per channel.

    y_t = (sum_{i<t} exp(k_i - (t-1-i) w) v_i + exp(k_t + u) v_t) / (the same sum without v)

with a decay w >= 0 per position and a bonus u for the present position. Both sums are stored relative to the largest
weight so far. No exponent is therefore positive, and keys of any size give finite answers and gradients.

Shapes here: R rows of weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.shapes import Array

# The log weight of an empty past: below that of any key, and finite, since -inf minus -inf would be NaN.
EMPTY_LOG_WEIGHT = -1e38


class WKVState(NamedTuple):
    """Numerator and denominator after a position, both divided by exp(largest).

    The factor exp(largest) cancels in the answers, so that ``largest_BC`` needs no gradient.
    """

    weighted_BC: Array  # sum of weights times values
    weights_BC: Array  # sum of weights
    largest_BC: Array  # the largest log weight


def wkv(
    keys_BTC: Array, values_BTC: Array, decay_C: Array, bonus_C: Array, state: WKVState | None = None
) -> tuple[Array, WKVState]:
    """y_BTC in the dtype of the values, and the state after the last position in at least float32.

    ``state`` is the state before the first position (default: an empty past), so that running position by position
    equals running the whole sequence at once. Computed step by step; backward recomputes the weights of each step.
    """
    return _run(_by_position, keys_BTC, values_BTC, decay_C, bonus_C, state)


def wkv_naive(
    keys_BTC: Array, values_BTC: Array, decay_C: Array, bonus_C: Array, state: WKVState | None = None
) -> tuple[Array, WKVState]:
    """`wkv` computed from the weights of all pairs of positions."""
    return _run(_by_pairs, keys_BTC, values_BTC, decay_C, bonus_C, state)


def _run(
    compute: Callable[..., tuple[WKVState, Array]],
    keys_BTC: Array,
    values_BTC: Array,
    decay_C: Array,
    bonus_C: Array,
    state: WKVState | None,
) -> tuple[Array, WKVState]:
    """Checks the arguments, runs ``compute`` in the accumulation dtype, and casts the answers back."""
    chex.assert_equal_shape([keys_BTC, values_BTC])
    batch, _, channels = keys_BTC.shape
    chex.assert_shape([decay_C, bonus_C], (channels,))
    dtype = accumulation_dtype(keys_BTC)
    if state is None:
        empty_BC = jnp.zeros((batch, channels), dtype)
        state = WKVState(empty_BC, empty_BC, empty_BC + EMPTY_LOG_WEIGHT)
    chex.assert_shape(list(state), (batch, channels))
    weighted_BC, weights_BC, largest_BC = (a.astype(dtype) for a in state)
    state = WKVState(weighted_BC, weights_BC, lax.stop_gradient(largest_BC))
    inputs = tuple(a.astype(dtype) for a in (keys_BTC, values_BTC, decay_C, bonus_C))
    state, y_BTC = compute(state, *inputs)
    return y_BTC.astype(values_BTC.dtype), state


def _by_pairs(
    state: WKVState, keys_BTC: Array, values_BTC: Array, decay_C: Array, bonus_C: Array
) -> tuple[WKVState, Array]:
    time = keys_BTC.shape[1]

    def sums(log_weights_BRTC: Array, log_past_BRC: Array) -> WKVState:
        """The sums of each row over all positions and the past before them; a log weight of -inf excludes a position.

        log_past_BRC: the log weight of what ``state`` holds.
        """
        largest_BRC = lax.stop_gradient(jnp.maximum(jnp.max(log_weights_BRTC, axis=2), log_past_BRC))
        weights_BRTC = jnp.exp(log_weights_BRTC - largest_BRC[:, :, None])
        past_BRC = jnp.exp(log_past_BRC - largest_BRC)
        weighted_BRC = jnp.einsum("brtc,btc->brc", weights_BRTC, values_BTC) + past_BRC * state.weighted_BC[:, None]
        return WKVState(weighted_BRC, weights_BRTC.sum(axis=2) + past_BRC * state.weights_BC[:, None], largest_BRC)

    age_TT = jnp.arange(time)[:, None] - 1 - jnp.arange(time)
    past_TT1, present_TT1 = (age_TT >= 0)[..., None], (age_TT == -1)[..., None]
    decayed_BTTC = keys_BTC[:, None] - jnp.maximum(age_TT, 0)[..., None] * decay_C
    present_BTTC = jnp.where(present_TT1, keys_BTC[:, None] + bonus_C, -jnp.inf)
    log_weights_BTTC = jnp.where(past_TT1, decayed_BTTC, present_BTTC)
    answers = sums(log_weights_BTTC, state.largest_BC[:, None] - jnp.arange(time)[:, None] * decay_C)
    last_BTC = keys_BTC - (time - 1 - jnp.arange(time))[:, None] * decay_C
    after = sums(last_BTC[:, None], state.largest_BC[:, None] - time * decay_C)
    return WKVState(*(a[:, 0] for a in after)), answers.weighted_BC / answers.weights_BC


def _by_position(
    state: WKVState, keys_BTC: Array, values_BTC: Array, decay_C: Array, bonus_C: Array
) -> tuple[WKVState, Array]:
    def add(past: WKVState, log_weight_BC: Array, value_BC: Array) -> WKVState:
        largest_BC = lax.stop_gradient(jnp.maximum(past.largest_BC, log_weight_BC))
        kept_BC, added_BC = jnp.exp(past.largest_BC - largest_BC), jnp.exp(log_weight_BC - largest_BC)
        return WKVState(
            kept_BC * past.weighted_BC + added_BC * value_BC, kept_BC * past.weights_BC + added_BC, largest_BC
        )

    def step(past: WKVState, inputs: tuple[Array, Array]) -> tuple[WKVState, Array]:
        key_BC, value_BC = inputs
        answer = add(past, key_BC + bonus_C, value_BC)
        after = add(past._replace(largest_BC=past.largest_BC - decay_C), key_BC, value_BC)
        return after, answer.weighted_BC / answer.weights_BC

    inputs = (jnp.swapaxes(keys_BTC, 0, 1), jnp.swapaxes(values_BTC, 0, 1))
    state, y_TBC = lax.scan(jax.checkpoint(step, prevent_cse=False), state, inputs)
    return state, jnp.swapaxes(y_TBC, 0, 1)
