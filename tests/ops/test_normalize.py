"""Normalisation to unit length, down to the zero vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops import unit


@pytest.mark.parametrize("eps", [0.0, 1e-10, 0.5])
@pytest.mark.parametrize("dtype, width", [("float32", w) for w in (1, 2, 63)] + [("bfloat16", 63)])
def test_value_and_gradient(assert_same, normal, dtype, width, eps):
    def definition(x):
        return x / (jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)) + eps)

    assert_same(definition, [lambda x: unit(x, eps)], [normal(5, width)], dtype)


@pytest.mark.parametrize("eps", [0.0, 1e-10])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15, 1e-9])
def test_short_vectors_are_finite(size, eps):
    x = jnp.full((3, 4), size)
    out, pull = jax.vjp(lambda x: unit(x, eps), x)
    (gradient,) = pull(jnp.arange(12.0).reshape(3, 4))
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(gradient))
    if size < 1e-12:
        assert np.all(out == 0) and np.all(gradient == 0)


def test_half_precision_is_normalised_in_float32():
    out = unit(jnp.full((1, 300), 1.0, jnp.bfloat16))
    assert out.dtype == jnp.float32
    assert float(jnp.linalg.norm(out)) == pytest.approx(1.0, rel=1e-6)
