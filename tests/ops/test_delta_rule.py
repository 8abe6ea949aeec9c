"""The delta rule against its naive form: answers, state and gradients; pieces of a sequence against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops.delta_rule import delta_rule, delta_rule_naive
from mosaics_jax.ops.normalize import unit


def arrays(time, dtype=np.float64):
    random = np.random.default_rng(time)
    batch, heads, width, out = 2, 3, 4, 5
    queries, keys = (unit(jnp.asarray(random.normal(size=(batch, time, heads, width)), dtype)) for _ in range(2))
    values = random.normal(size=(batch, time, heads, out))
    strength = random.uniform(size=(batch, time, heads))
    state = random.normal(size=(batch, heads, width, out))
    return [queries, keys, *(jnp.asarray(a, dtype) for a in (values, strength, state))]


def answers_state_gradients(run, inputs):
    def total(*inputs):
        answers, state = run(*inputs)
        return jnp.sum(jnp.sin(answers)) + jnp.sum(jnp.cos(state)), (answers, state)

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(5)), has_aux=True))(*inputs)


@pytest.mark.parametrize("time", [1, 2, 63, 130])
def test_equals_the_naive_form(x64, time):
    ours, naive = (answers_state_gradients(run, arrays(time)) for run in (delta_rule, delta_rule_naive))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_equals_the_naive_form_in_float32_when_all_keys_are_equal():
    """The worst case for an inverse: every later write corrects every earlier one."""
    queries, _, values, _, state = arrays(63, np.float32)
    inputs = [queries, jnp.broadcast_to(queries[:, :1], queries.shape), values, jnp.ones(values.shape[:3]), state]
    ours, naive = (answers_state_gradients(run, inputs) for run in (delta_rule, delta_rule_naive))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_query_reads_the_value_written_last():
    """With strength 1, a query at a key of norm 1 reads the value stored there last; orthogonal keys change nothing."""
    key, other = jnp.eye(4)[:2]
    keys = jnp.stack([key, other, key, other])[None, :, None]
    values = jnp.arange(1.0, 5.0)[None, :, None, None]
    answers, _ = delta_rule(jnp.broadcast_to(key, keys.shape), keys, values, jnp.ones((1, 4, 1)))
    np.testing.assert_allclose(answers[0, :, 0, 0], [1, 1, 3, 3], atol=1e-6)


def test_pieces_equal_the_whole(x64):
    *inputs, state = arrays(70)
    whole, last = delta_rule(*inputs, state)
    pieces = []
    for start, stop in ((0, 1), (1, 33), (33, 70)):
        answers, state = delta_rule(*(a[:, start:stop] for a in inputs), state)
        pieces.append(answers)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(state, last, rtol=1e-9, atol=1e-11)


def test_bfloat16_keeps_its_sums_in_float32():
    inputs = arrays(63, jnp.bfloat16)
    answers, state = delta_rule(*inputs)
    assert answers.dtype == jnp.bfloat16
    assert state.dtype == jnp.float32
    exact, _ = delta_rule(*(a.astype(jnp.float32) for a in inputs))
    np.testing.assert_allclose(answers.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def test_calls_no_solver_of_lapack():
    """LAPACK's batched triangular solver can wait forever on a CPU with few cores."""
    text = jax.jit(jax.grad(lambda *inputs: jnp.sum(delta_rule(*inputs)[0]))).lower(*arrays(63, np.float32)).as_text()
    assert "triangular" not in text
    assert "custom_call" not in text
