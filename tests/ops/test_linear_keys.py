"""The linear memory against its naive form (answers, gradients, under vmap), and sums over the past against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops import RetrievalForm, linear_memory
from mosaics_jax.ops.linear_keys import past_sums

SHAPES = [(1, 6, 1, 2), (3, 2, 2, 1), (3, 2, 63, 3), (1, 6, 205, 5), (2, 2, 170, 4)]  # heads, width, time, batch


def arrays(heads, width, time, batch, dtype=np.float64):
    random = np.random.default_rng(time)
    channels = heads * width
    shapes = ((batch, time, channels), (heads, width, channels), (heads, width, channels), (batch, time, heads, width))
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(x, w_phi, w_psi, cotangent, form):
    def scalar(w_phi, w_psi):
        answers = linear_memory(x, w_phi, w_psi, 2.0, form)
        return jnp.sum(answers * cotangent), answers

    (_, answers), gradients = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(w_phi, w_psi)
    return answers, *gradients


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_naive_form(x64, shape):
    x, w_phi, w_psi, cotangent = arrays(*shape)
    ours = value_and_gradients(x, w_phi, w_psi, cotangent, RetrievalForm.AUTO)
    naive = value_and_gradients(x, w_phi, w_psi, cotangent, RetrievalForm.NAIVE)
    for one, other in zip(ours, naive, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12 * float(jnp.abs(other).max()) + 1e-13)


def test_float32_is_as_near_to_float64_as_the_naive_form():
    inputs = arrays(3, 2, 205, 4, np.float32)
    with jax.enable_x64(True):
        exact = value_and_gradients(*(jnp.asarray(np.asarray(a), np.float64) for a in inputs), RetrievalForm.NAIVE)
    ours = value_and_gradients(*inputs, RetrievalForm.AUTO)
    naive = value_and_gradients(*inputs, RetrievalForm.NAIVE)
    for one, other, truth in zip(ours, naive, exact, strict=True):
        assert one.dtype == jnp.float32
        error, floor = (np.abs(np.asarray(a, np.float64) - np.asarray(truth)).max() for a in (one, other))
        assert error <= 4 * floor + 1e-7 * np.abs(truth).max()


def test_networks_under_vmap_equal_one_at_a_time(x64):
    x, w_phi, w_psi, cotangent = arrays(3, 2, 63, 4)
    scales = jnp.array([1.0, 0.5])
    together = jax.vmap(lambda s: value_and_gradients(x, s * w_phi, w_psi, cotangent, RetrievalForm.AUTO)[1])(scales)
    for scale, one in zip(scales, together, strict=True):
        alone = value_and_gradients(x, scale * w_phi, w_psi, cotangent, RetrievalForm.AUTO)[1]
        np.testing.assert_allclose(one, alone, rtol=1e-12)


def test_first_answer_is_zero_and_answers_do_not_depend_on_the_future(x64):
    x, w_phi, w_psi, _ = arrays(3, 2, 170, 2)
    answers = linear_memory(x, w_phi, w_psi, 2.0)
    np.testing.assert_array_equal(answers[:, 0], 0.0)
    for t in (1, 79, 80, 81, 169):
        changed = linear_memory(x.at[:, t + 1 :].add(1.0), w_phi, w_psi, 2.0)
        np.testing.assert_allclose(changed[:, : t + 1], answers[:, : t + 1], rtol=1e-12)


def test_no_gradient_flows_into_the_signal():
    x, w_phi, w_psi, _ = arrays(1, 6, 20, 2, np.float32)
    np.testing.assert_array_equal(jax.grad(lambda x: linear_memory(x, w_phi, w_psi, 2.0).sum())(x), 0.0)


def test_sums_over_any_number_of_pairs(x64):
    random = np.random.default_rng(0)
    pairs = np.array([0, 0, 3, 17, 1, 40, 33])
    queries, keys, features = (random.normal(size=shape) for shape in ((2, 7, 2), (2, 40, 2), (2, 40, 3)))
    top, total, weighted = past_sums(jnp.array(queries), jnp.array(keys), jnp.array(features), pairs)
    for g in range(2):
        for row, count in enumerate(pairs):
            weights = np.exp(keys[g, :count] @ queries[g, row] - np.asarray(top)[g, row])
            np.testing.assert_allclose(total[g, row], weights.sum(), rtol=1e-12)
            np.testing.assert_allclose(weighted[g, row], weights @ features[g, :count], rtol=1e-12, atol=1e-14)
            if count:
                np.testing.assert_allclose(top[g, row], (keys[g, :count] @ queries[g, row]).max(), rtol=1e-12)
