"""The selective scan against its naive form: answers, states and gradients; pieces of a sequence against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops.selective_scan import selective_scan, selective_scan_naive


def arrays(time, dtype=np.float64, stride=1.0):
    """x, step, rate, input, output, state of 2 rows, 3 channels with 4 states each."""
    random = np.random.default_rng(time)
    batch, channels, states = 2, 3, 4
    x = random.normal(size=(batch, time, channels))
    step = stride * random.exponential(size=(batch, time, channels))
    rate = -random.exponential(size=(states, channels))
    maps = random.normal(size=(2, batch, time, states))
    state = random.normal(size=(batch, states, channels))
    return [jnp.asarray(a, dtype) for a in (x, step, rate, *maps, state)]


def with_gradients(scan, inputs):
    def total(*inputs):
        y, state = scan(*inputs)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state)), (y, state)

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(6)), has_aux=True))(*inputs)


@pytest.mark.parametrize("time", [1, 2, 63, 130])
def test_equals_the_naive_form(x64, time):
    inputs = arrays(time)
    ours, naive = (with_gradients(scan, inputs) for scan in (selective_scan, selective_scan_naive))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_equals_the_naive_form_in_float32(assert_same):
    def answers(scan):
        return lambda *inputs: scan(*inputs)[0]

    assert_same(answers(selective_scan_naive), [answers(selective_scan)], arrays(63, np.float32))


def test_long_steps_neither_overflow_nor_are_nan():
    value, gradients = with_gradients(selective_scan, arrays(130, np.float32, stride=1e4))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((value, gradients)))


def test_no_step_leaves_the_state_as_it_is():
    x, step, rate, input_, output, state = arrays(5, np.float32)
    y, after = selective_scan(x, jnp.zeros_like(step), rate, input_, output, state)
    np.testing.assert_array_equal(after, state)
    np.testing.assert_allclose(y, jnp.einsum("bzc,btz->btc", state, output), rtol=1e-5, atol=1e-6)


def test_pieces_equal_the_whole(x64):
    x, step, rate, input_, output, state = arrays(70)
    whole, last = selective_scan(x, step, rate, input_, output, state)
    pieces = []
    for start, stop in ((0, 1), (1, 33), (33, 70)):
        part = slice(start, stop)
        y, state = selective_scan(x[:, part], step[:, part], rate, input_[:, part], output[:, part], state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-10, atol=1e-12)


def test_bfloat16_keeps_its_state_in_float32():
    inputs = arrays(63, jnp.bfloat16)
    y, state = selective_scan(*inputs)
    assert y.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    exact, _ = selective_scan(*(a.astype(jnp.float32) for a in inputs))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)
