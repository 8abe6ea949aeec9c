"""The recurrence against its naive form: answers, state and gradients; pieces of a sequence against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops.linear_recurrence import linear_recurrence, linear_recurrence_naive


def arrays(time, shared, dtype=np.float64, strength=1.0):
    random = np.random.default_rng(time)
    batch, heads, width, out = 2, 3, 4, 5
    shapes = ((batch, time, heads, width),) * 2 + ((batch, time, heads, out),)
    inputs = [random.normal(size=shape) for shape in shapes]
    decay = -strength * random.exponential(size=(batch, time, heads, 1 if shared else width))
    state = random.normal(size=(batch, heads, width, out))
    return [jnp.asarray(a, dtype) for a in (*inputs, decay, state)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("time", [1, 2, 16, 63, 130])
def test_equals_the_naive_form(x64, time, shared):
    inputs = arrays(time, shared)

    def scalar(run):
        def total(*inputs):
            answers, state = run(*inputs)
            return jnp.sum(jnp.sin(answers)) + jnp.sum(jnp.cos(state)), (answers, state)

        return jax.jit(jax.value_and_grad(total, argnums=tuple(range(5)), has_aux=True))(*inputs)

    ours, naive = scalar(linear_recurrence), scalar(linear_recurrence_naive)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("axes", [(1, 1, 3, 1), (1, 70, 1, 4)])
def test_axes_that_share_a_decay(x64, axes):
    *inputs, _, state = arrays(70, False)
    decay = -jnp.asarray(np.random.default_rng(0).exponential(size=axes))

    def total(decay, spread):
        answers, state_after = linear_recurrence(*inputs, jnp.broadcast_to(decay, spread), state)
        return jnp.sum(jnp.sin(answers)) + jnp.sum(jnp.cos(state_after))

    both = jax.jit(lambda decay: [jax.value_and_grad(total)(decay, spread) for spread in (axes, (2, 70, 3, axes[-1]))])
    ours, full = both(decay)
    for one, other in zip(ours, full, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_strong_decay_neither_overflows_nor_is_nan(shared):
    inputs = arrays(130, shared, np.float32, strength=1e4)
    value, gradients = jax.value_and_grad(lambda *a: linear_recurrence(*a)[0].sum(), argnums=(0, 1, 2, 3, 4))(*inputs)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("shared", [True, False])
def test_pieces_equal_the_whole(x64, shared):
    *inputs, state = arrays(70, shared)
    whole, last = linear_recurrence(*inputs, state)
    pieces = []
    for start, stop in ((0, 1), (1, 33), (33, 70)):
        answers, state = linear_recurrence(*(a[:, start:stop] for a in inputs), state)
        pieces.append(answers)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-10, atol=1e-12)


def test_bfloat16_keeps_its_sums_in_float32():
    inputs = arrays(63, True, jnp.bfloat16)
    answers, state = linear_recurrence(*inputs)
    assert answers.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    exact, _ = linear_recurrence(*(a.astype(jnp.float32) for a in inputs))
    np.testing.assert_allclose(answers.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def test_the_number_of_decays_is_checked():
    queries, keys, values, decay, _ = arrays(4, True, np.float32)
    with pytest.raises(ValueError, match="1 or 4"):
        linear_recurrence(queries, keys, values, jnp.tile(decay, (1, 1, 1, 3)))
