"""The leaky average over time, with one decay rate per head (v1 eq. 6), and the shift to the next position (v1 eq. 5).

    y_t = sum_{s <= t} exp(-rate (t - s)) x_s        so that        y_t = exp(-rate) y_{t-1} + x_t

An average would have the factor 1 - exp(-rate). It is left out: dividing y by its norm cancels it, and without it a
rate of 0 gives the plain sum instead of 0. Multiply y by the factor to get the average itself.

Shapes here: I chunks, Q positions of a chunk, J shards of time.
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
from mosaics_jax.sharding import HEADS, map_shards, time_axes

CHUNK = 64  # positions of a chunk


class LeakyForm(enum.Enum):
    """How the recurrence is computed. AUTO selects SCAN on CPU and CHUNKED elsewhere."""

    AUTO = "auto"
    NAIVE = "naive"  # a product with the T x T matrix of decays
    SCAN = "scan"  # position by position
    CHUNKED = "chunked"  # matrix products within chunks; the state is carried from chunk to chunk


def leaky_average(
    x_BTHD: Array, rate_H: Array, state_BHD: Array | None = None, form: LeakyForm = LeakyForm.AUTO
) -> Array:
    """y_BTHD, accumulated and returned in at least float32.

    rate_H >= 0, in 1 / position. state_BHD: y before the first position (default: zeros); to continue a sequence, pass
    the last position of the previous result. The gradient with respect to the rate is exact.

    If the mesh shards time, each device runs the recurrence on its shard from zero, and then adds the decayed result of
    all earlier shards.
    """
    chex.assert_rank([x_BTHD, rate_H], [4, 1])
    batch, _, heads, width = x_BTHD.shape
    chex.assert_shape(rate_H, (heads,))
    dtype = accumulation_dtype(x_BTHD)
    x_BTHD, rate_H = x_BTHD.astype(dtype), rate_H.astype(dtype)
    if form is LeakyForm.AUTO:
        form = LeakyForm.SCAN if platform() == "cpu" else LeakyForm.CHUNKED
    if state_BHD is None and (axes := time_axes(x_BTHD)):
        on_shard = functools.partial(_on_time_shard, form, axes)
        return map_shards(on_shard, x_BTHD, rate_H, names=(HEADS, HEADS[2:3]))
    if state_BHD is None:
        state_BHD = jnp.zeros((batch, heads, width), dtype)
    chex.assert_shape(state_BHD, (batch, heads, width))
    return _unsharded(form, x_BTHD, rate_H, state_BHD.astype(dtype))


def _unsharded(form: LeakyForm, x_BTHD: Array, rate_H: Array, state_BHD: Array) -> Array:
    time = x_BTHD.shape[1]
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


def _on_time_shard(form: LeakyForm, axes: tuple[str, ...], x_BTHD: Array, rate_H: Array) -> Array:
    y_BTHD = _unsharded(form, x_BTHD, rate_H, jnp.zeros_like(x_BTHD[:, 0]))
    time = x_BTHD.shape[1]
    last_JBHD = lax.all_gather(y_BTHD[:, -1], axes)
    age_J = lax.axis_index(axes) - 1 - jnp.arange(len(last_JBHD))  # whole shards between shard j and this one
    decay_JH = jnp.where(age_J[:, None] >= 0, jnp.exp(-rate_H * time * jnp.maximum(age_J, 0)[:, None]), 0.0)
    before_BHD = jnp.sum(decay_JH[:, None, :, None] * last_JBHD, axis=0)
    decay_TH = jnp.exp(-rate_H * (jnp.arange(time)[:, None] + 1))
    return y_BTHD + decay_TH[..., None] * before_BHD[:, None]


def next_position(x: Array) -> Array:
    """x_{t+1} at position t, and 0 at the last position: (B, T, C) or (B, T, H, D) to the same shape.

    If the mesh shards time, each device receives the first position of the next shard.
    """
    axes = time_axes(x)
    if not axes:
        return jnp.pad(x[:, 1:], ((0, 0), (0, 1)) + ((0, 0),) * (x.ndim - 2))

    def on_shard(x: Array) -> Array:
        (axis,) = axes
        to_previous_shard = [(shard, shard - 1) for shard in range(1, lax.axis_size(axis))]
        return jnp.concatenate([x[:, 1:], lax.ppermute(x[:, :1], axis, to_previous_shard)], axis=1)

    return map_shards(on_shard, x, names=(HEADS[: x.ndim],))


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
    """The gradient of x is the same recurrence, run backwards in time over the gradient of y."""
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
    x_BTHD = jnp.pad(x_BTHD, ((0, 0), (0, chunks * size - time), (0, 0), (0, 0)))
    x_BIQHD = x_BTHD.reshape(batch, chunks, size, heads, width)
    age_QQ = jnp.arange(size)[:, None] - jnp.arange(size)
    # Ages are clipped at 0: exp(rate * age) above the diagonal would overflow.
    power_HQQ = jnp.where(age_QQ >= 0, jnp.exp(-rate_H[:, None, None] * jnp.maximum(age_QQ, 0)), 0.0)
    within_BIQHD = jnp.einsum("hqs,bishd->biqhd", power_HQQ, x_BIQHD)
    decay_H1 = jnp.exp(-rate_H * size)[:, None]

    def carry(state_BHD: Array, last_BHD: Array) -> tuple[Array, Array]:
        return decay_H1 * state_BHD + last_BHD, state_BHD

    _, before_IBHD = lax.scan(carry, state_BHD, jnp.moveaxis(within_BIQHD[:, :, -1], 1, 0))
    decay_QH = jnp.exp(-rate_H * (jnp.arange(size)[:, None] + 1))
    y_BIQHD = within_BIQHD + decay_QH[..., None] * jnp.moveaxis(before_IBHD, 0, 1)[:, :, None]
    return y_BIQHD.reshape(batch, chunks * size, heads, width)[:, :time]
