"""Leaky average over time, one decay rate a head (v1 eq. 6).

    y_t = sum_{s <= t} exp(-rate (t - s)) x_s        so that        y_t = exp(-rate) y_{t-1} + x_t

The factor 1 - exp(-rate) of an average is left out: where y is divided by its norm it cancels, and without it a
rate of 0 is the plain sum instead of 0. Who wants the average itself multiplies.
"""

import enum
import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mosaics_jax.ops.normalize import accumulation_dtype
from mosaics_jax.ops.platform import platform
from mosaics_jax.shapes import Array

CHUNK = 64


class LeakyForm(enum.Enum):
    """How the recurrence is computed. AUTO: SCAN on CPU, CHUNKED elsewhere."""

    AUTO = "auto"
    NAIVE = "naive"  # a T x T matrix of powers
    SCAN = "scan"  # step by step
    CHUNKED = "chunked"  # matrix products within chunks, one carried state between them


def leaky_average(
    x_BTHD: Array, rate_H: Array, state_BHD: Array | None = None, form: LeakyForm = LeakyForm.AUTO
) -> Array:
    """y_BTHD in at least float32, which the sums are kept in whatever the type of ``x``.

    rate_H >= 0, per position. ``state_BHD`` is y just before the first position (default 0): the last row of the result
    is the state that the next chunk of the sequence starts from. The gradient with respect to the rate is exact.
    """
    chex.assert_rank([x_BTHD, rate_H], [4, 1])
    batch, time, heads, width = x_BTHD.shape
    chex.assert_shape(rate_H, (heads,))
    dtype = accumulation_dtype(x_BTHD)
    if state_BHD is None:
        state_BHD = jnp.zeros((batch, heads, width), dtype)
    chex.assert_shape(state_BHD, (batch, heads, width))
    x_BTHD, rate_H, state_BHD = x_BTHD.astype(dtype), rate_H.astype(dtype), state_BHD.astype(dtype)
    if form is LeakyForm.AUTO:
        form = LeakyForm.SCAN if platform() == "cpu" else LeakyForm.CHUNKED
    if time == 0:
        return x_BTHD
    if time == 1:
        return x_BTHD + jnp.exp(-rate_H)[:, None] * state_BHD[:, None]
    if form is LeakyForm.NAIVE:
        return _naive(x_BTHD, rate_H, state_BHD)
    return _recurrence(form, x_BTHD, rate_H, state_BHD)


def _naive(x_BTHD: Array, rate_H: Array, state_BHD: Array) -> Array:
    age_TT = jnp.arange(x_BTHD.shape[1])[:, None] - jnp.arange(x_BTHD.shape[1])
    power_HTT = jnp.where(age_TT >= 0, jnp.exp(-rate_H[:, None, None] * jnp.maximum(age_TT, 0)), 0.0)
    power_TH = jnp.exp(-rate_H * (jnp.arange(x_BTHD.shape[1])[:, None] + 1))
    return jnp.einsum("hts,bshd->bthd", power_HTT, x_BTHD) + power_TH[..., None] * state_BHD[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(form: LeakyForm, x_BTHD: Array, rate_H: Array, state_BHD: Array) -> Array:
    return _run(form, x_BTHD, rate_H, state_BHD)


def _recurrence_forward(
    form: LeakyForm, x_BTHD: Array, rate_H: Array, state_BHD: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    y_BTHD = _run(form, x_BTHD, rate_H, state_BHD)
    return y_BTHD, (y_BTHD, rate_H, state_BHD)


def _recurrence_backward(
    form: LeakyForm, saved: tuple[Array, Array, Array], gradient_BTHD: Array
) -> tuple[Array, Array, Array]:
    """The gradient of x is the same recurrence run backwards over the gradient of y."""
    y_BTHD, rate_H, state_BHD = saved
    dx_BTHD = jnp.flip(_run(form, jnp.flip(gradient_BTHD, 1), rate_H, jnp.zeros_like(state_BHD)), 1)
    before_BTHD = jnp.concatenate([state_BHD[:, None], y_BTHD[:, :-1]], axis=1)
    decay_H = jnp.exp(-rate_H)
    drate_H = -decay_H * jnp.einsum("bthd,bthd->h", dx_BTHD, before_BTHD)
    return dx_BTHD, drate_H, decay_H[:, None] * dx_BTHD[:, 0]


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


def _run(form: LeakyForm, x_BTHD: Array, rate_H: Array, state_BHD: Array) -> Array:
    if form is LeakyForm.CHUNKED:
        return _chunked(x_BTHD, rate_H, state_BHD)
    return _scan(x_BTHD, jnp.exp(-rate_H)[:, None], state_BHD)


def _scan(x_BTHD: Array, decay_H1: Array, state_BHD: Array) -> Array:
    def step(y_BHD: Array, x_BHD: Array) -> tuple[Array, Array]:
        y_BHD = decay_H1 * y_BHD + x_BHD
        return y_BHD, y_BHD

    _, y_TBHD = lax.scan(step, state_BHD, jnp.moveaxis(x_BTHD, 1, 0))
    return jnp.moveaxis(y_TBHD, 0, 1)


def _chunked(x_BTHD: Array, rate_H: Array, state_BHD: Array) -> Array:
    batch, time, heads, width = x_BTHD.shape
    size = min(CHUNK, time)
    chunks = -(-time // size)
    x = jnp.pad(x_BTHD, ((0, 0), (0, chunks * size - time), (0, 0), (0, 0)))
    x = x.reshape(batch, chunks, size, heads, width)
    age = jnp.arange(size)[:, None] - jnp.arange(size)
    # Powers from the logarithm, of ages clipped at 0: exp(+rate age) above the diagonal would overflow.
    power = jnp.where(age >= 0, jnp.exp(-rate_H[:, None, None] * jnp.maximum(age, 0)), 0.0)
    within = jnp.einsum("hts,bnshd->bnthd", power, x)
    decay_chunk = jnp.exp(-rate_H * size)[:, None]

    def carry(state: Array, last: Array) -> tuple[Array, Array]:
        return decay_chunk * state + last, state

    _, before = lax.scan(carry, state_BHD, jnp.moveaxis(within[:, :, -1], 1, 0))
    reach = jnp.exp(-rate_H * (jnp.arange(size)[:, None] + 1))
    y = within + reach[..., None] * jnp.moveaxis(before, 0, 1)[:, :, None]
    return y.reshape(batch, chunks * size, heads, width)[:, :time]
