"""WKV against its naive form: answers, states and gradients, for keys of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops.wkv import WKVState, wkv, wkv_naive


def arrays(time, dtype=np.float64, offset=0.0):
    """Keys, values, decay, bonus, and a state that is not empty, of 2 rows and 3 channels."""
    random = np.random.default_rng(time)
    batch, channels = 2, 3
    keys = offset + random.normal(size=(batch, time, channels))
    values = random.normal(size=(batch, time, channels))
    decay, bonus = np.array([0.0, 0.1, 20.0]), random.normal(size=channels)
    state = (random.normal(size=(batch, channels)), 1 + random.exponential(size=(batch, channels)))
    largest = offset + random.normal(size=(batch, channels))
    inputs = [jnp.asarray(a, dtype) for a in (keys, values, decay, bonus, *state, largest)]
    return [*inputs[:4], WKVState(*inputs[4:])]


def with_gradients(run, inputs):
    def total(*inputs):
        y, state = run(*inputs)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state.weighted_BC) + jnp.sin(state.weights_BC)), (y, state)

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(inputs))), has_aux=True))(*inputs)


@pytest.mark.parametrize(("time", "given"), [(1, 4), (1, 5), (2, 5), (63, 4), (130, 5)])
def test_equals_the_naive_form(x64, time, given):
    """With 4 inputs the past is empty; the fifth is a state."""
    inputs = arrays(time)[:given]
    ours, naive = (with_gradients(run, inputs) for run in (wkv, wkv_naive))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_equals_the_naive_form_in_float32(assert_same):
    def answers(run):
        return lambda *inputs: run(*inputs)[0]

    assert_same(answers(wkv_naive), [answers(wkv)], arrays(63, np.float32)[:4])


def test_by_hand():
    """Weights of position 2: exp(k_0 - w), exp(k_1), exp(k_2 + u)."""
    keys, values = jnp.log(jnp.array([[3.0, 5.0, 7.0]]))[..., None], jnp.array([[1.0, 10.0, 100.0]])[..., None]
    y, _ = wkv(keys, values, decay_C=jnp.log(jnp.array([2.0])), bonus_C=jnp.log(jnp.array([4.0])))
    expected = [1.0, (3 + 20 * 10) / (3 + 20), (1.5 + 5 * 10 + 28 * 100) / (1.5 + 5 + 28)]
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=1e-6)


def test_large_keys_are_exact(x64):
    """In float32, whose exp overflows at 89, equal to float64 up to the spacing of floats near the keys."""
    inputs = arrays(63, np.float32, offset=200.0)
    narrow = with_gradients(wkv, inputs)
    exact = with_gradients(wkv_naive, [jax.tree.map(lambda a: a.astype(jnp.float64), a) for a in inputs])
    for one, other in zip(jax.tree.leaves(narrow), jax.tree.leaves(exact), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=10 * np.spacing(np.float32(200)))


@pytest.mark.parametrize("scale", [-1e30, 1e30])
def test_keys_of_any_size_are_stable(scale):
    keys, *inputs = arrays(63, np.float32)[:4]
    results = with_gradients(wkv, [scale * jnp.abs(keys), *inputs])
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(results))


def test_pieces_equal_the_whole(x64):
    keys, values, decay, bonus, state = arrays(70)
    whole, last = wkv(keys, values, decay, bonus, state)
    pieces = []
    for start, stop in ((0, 1), (1, 33), (33, 70)):
        y, state = wkv(keys[:, start:stop], values[:, start:stop], decay, bonus, state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-12)
    for one, other in zip(state, last, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_bfloat16_keeps_its_sums_in_float32():
    inputs = arrays(63, jnp.bfloat16)[:4]
    y, state = wkv(*inputs)
    assert y.dtype == jnp.bfloat16
    assert state.weights_BC.dtype == jnp.float32
    exact, _ = wkv(*(a.astype(jnp.float32) for a in inputs))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)
