"""Kernel regression: the Gaussian form for keys of any norm, and the dot-product form for keys of norm 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops import gaussian_regression, unit_key_regression
from mosaics_jax.ops.kernel_regression import gaussian_regression_naive


def definition(queries, keys, values, beta, mask=None):
    """v1 eq. 2: weights from the distance of each query and key."""
    distance = jnp.sum((queries[:, :, None] - keys[:, None]) ** 2, axis=-1)
    kernel = jnp.exp(-beta * distance) * (1.0 if mask is None else mask)
    total = kernel.sum(-1, keepdims=True)
    return jnp.einsum("btn,bne->bte", kernel / jnp.where(total == 0, 1, total), values)


@pytest.mark.parametrize("dtype, length", [("float32", n) for n in (1, 2, 63, 130)] + [("bfloat16", 63)])
def test_gaussian(assert_same, normal, dtype, length):
    args = (normal(2, 5, 3), normal(2, length, 3, seed=1), normal(2, length, 4, seed=2), np.float32(0.7))
    forms = [gaussian_regression] + [gaussian_regression_naive] * (dtype == "float32")
    assert_same(definition, forms, args, dtype, cast=(True, True, True, False))


@pytest.mark.parametrize("dtype, length", [("float32", n) for n in (1, 2, 63, 130)] + [("bfloat16", 63)])
def test_unit_keys(assert_same, normal, dtype, length):
    """For keys of norm 1, the factor of the dot product is twice the Gaussian beta."""
    keys = normal(2, length, 3, seed=1)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)

    def on_the_sphere(form, half):
        def f(queries, keys, values, beta):
            keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
            return form(queries, keys, values, beta / half)

        return f

    args = (normal(2, 5, 3), keys, normal(2, length, 4, seed=2), np.float32(3.0))
    forms = [on_the_sphere(unit_key_regression, 1)]
    assert_same(on_the_sphere(definition, 2), forms, args, dtype, cast=(True, True, True, False))


@pytest.mark.parametrize("form", [gaussian_regression, gaussian_regression_naive, unit_key_regression])
def test_rows_without_a_pair_answer_zero(normal, form):
    queries, keys, values = normal(1, 3, 2), normal(1, 4, 2, seed=1), normal(1, 4, 2, seed=2)
    mask = np.array([[[False] * 4, [True] * 4, [True, False, False, False]]])

    def total(*args):
        out = form(*args, 2.0, mask)
        return jnp.sum(out**2), out

    grads, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(queries, keys, values)
    assert np.all(out[0, 0] == 0) and np.allclose(out[0, 2], values[0, 0])
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert np.all(grads[0][0, 0] == 0)
    unseen = functools.partial(form, queries[:, :1], beta=2.0, mask=mask[:, :1])
    assert all(np.all(g == 0) for g in jax.grad(lambda k, v: unseen(k, v).sum(), argnums=(0, 1))(keys, values))


@pytest.mark.parametrize("form", [gaussian_regression, gaussian_regression_naive, unit_key_regression])
def test_empty_memory_answers_zero(normal, form):
    queries, nothing = normal(1, 3, 2), np.zeros((1, 0, 2), np.float32)
    out = form(queries, nothing, nothing, 2.0)
    assert out.shape == (1, 3, 2) and np.all(out == 0)
    assert np.all(jax.grad(lambda q: form(q, nothing, nothing, 2.0).sum())(queries) == 0)


def test_far_keys_and_high_bandwidths_stay_finite(normal):
    args = (100 * normal(1, 3, 2), 100 * normal(1, 4, 2, seed=1), normal(1, 4, 2, seed=2))
    out, pull = jax.vjp(lambda *a: gaussian_regression(*a, 50.0), *args)
    assert np.all(np.isfinite(out)) and all(np.all(np.isfinite(g)) for g in pull(jnp.ones_like(out)))
