"""The leaky average: every form against its definition, with a state, over chunks, and at extreme rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops import LeakyForm, leaky_average

FORMS = [LeakyForm.NAIVE, LeakyForm.SCAN, LeakyForm.CHUNKED]
RATES = np.array([0.0, 0.03, 1.0, 30.0], np.float32)


def definition(x, rate, state):
    """The sum over all earlier positions with their decays; the state is the position before the first."""
    past = jnp.concatenate([state[:, None], x], axis=1)
    age = jnp.arange(1, past.shape[1])[:, None] - jnp.arange(past.shape[1])
    power = jnp.where(age >= 0, jnp.exp(-rate[:, None, None] * jnp.where(age >= 0, age, 0)), 0)
    return jnp.sum(power[None, :, :, :, None] * jnp.moveaxis(past, 2, 1)[:, :, None], axis=3).swapaxes(1, 2)


@pytest.mark.parametrize("dtype, time", [("float32", t) for t in (1, 2, 63, 130)] + [("bfloat16", 63)])
def test_forms_agree_with_definition(assert_same, normal, dtype, time):
    forms = [lambda x, rate, state, form=form: leaky_average(x, rate, state, form=form) for form in FORMS]
    args = (normal(2, time, 4, 3), RATES, normal(2, 4, 3, seed=1))
    assert_same(definition, forms, args, dtype, cast=(True, False, False))


@pytest.mark.parametrize("form", FORMS)
def test_chunks_equal_the_whole_sequence(normal, form):
    x, state = normal(2, 131, 4, 3), jnp.zeros((2, 4, 3))
    run = jax.jit(lambda x, state: leaky_average(x, RATES, state, form=form))
    whole, parts = run(x, state), []
    for piece in np.split(x, [1, 66], axis=1):
        parts.append(run(piece, state))
        state = parts[-1][:, -1]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_the_rate_is_exact(x64, normal, form):
    x, state, rate = normal(2, 70, 4, 3).astype(float), normal(2, 4, 3, seed=1).astype(float), RATES.astype(float)

    @jax.jit
    def loss(rate):
        return jnp.sum(jnp.sin(leaky_average(x, rate, state, form=form)))

    gradient = jax.grad(loss)(rate)
    for head in range(4):
        step = 1e-6 * np.eye(4)[head]
        assert float(loss(rate + step) - loss(rate - step)) / 2e-6 == pytest.approx(
            float(gradient[head]), rel=1e-6, abs=1e-6
        )


@pytest.mark.parametrize("form", FORMS)
def test_extreme_rates_stay_finite(normal, form):
    """exp(rate * T) overflows float32."""
    x, rate = normal(1, 130, 3, 2), np.array([0.0, 80.0, 1e4], np.float32)

    @jax.jit
    def run(x, rate):
        out, pull = jax.vjp(lambda x, rate: leaky_average(x, rate, form=form), x, rate)
        return out, *pull(jnp.ones_like(out))

    out, dx, drate = run(x, rate)
    assert all(np.all(np.isfinite(a)) for a in (out, dx, drate))
    np.testing.assert_allclose(out[:, :, 0], np.cumsum(x[:, :, 0], axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out[:, :, 2], x[:, :, 2])


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_kept_in_float32(form):
    """In bfloat16, a sum of ones would stop at 256."""
    out = jax.jit(lambda x: leaky_average(x, jnp.zeros(1), form=form))(jnp.ones((1, 600, 1, 1), jnp.bfloat16))
    assert out.dtype == jnp.float32 and float(out[0, -1, 0, 0]) == 600
