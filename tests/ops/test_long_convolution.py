"""The convolution by FFT against the naive one, and the naive one against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.ops.long_convolution import fast_fft_size, long_convolution, long_convolution_naive

SIZES = [(1, 1), (2, 2), (2, 5), (63, 63), (63, 1), (130, 130), (130, 64), (130, 200)]


def arrays(time, taps, dtype):
    random = np.random.default_rng(time + taps)
    inputs, filters = random.normal(size=(2, time, 3)), random.normal(size=(taps, 3))
    return jnp.asarray(inputs, dtype), jnp.asarray(filters, dtype)


def answers_and_gradients(convolution, inputs, filters):
    def total(inputs, filters):
        answers = convolution(inputs, filters)
        return jnp.sum(jnp.sin(answers)), answers

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(inputs, filters)


def compare(time, taps, dtype, **tolerance):
    inputs = arrays(time, taps, dtype)
    ours, naive = (answers_and_gradients(form, *inputs) for form in (long_convolution, long_convolution_naive))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(naive), strict=True):
        assert one.dtype == other.dtype == dtype
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize(("time", "taps"), SIZES)
def test_equals_the_naive_form(x64, time, taps):
    compare(time, taps, jnp.float64, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("time", "taps"), [(1, 1), (63, 63), (130, 64)])
def test_equals_the_naive_form_in_float32(time, taps):
    compare(time, taps, jnp.float32, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("time", "taps"), [(1, 1), (5, 3), (6, 9)])
def test_the_naive_form_is_the_sum(x64, time, taps):
    inputs, filters = arrays(time, taps, np.float64)
    expected = np.zeros(inputs.shape)
    for t in range(time):
        for s in range(max(0, t - taps + 1), t + 1):
            expected[:, t] += filters[t - s] * inputs[:, s]
    np.testing.assert_allclose(long_convolution_naive(inputs, filters), expected, rtol=1e-12)


def test_nothing_wraps_around(x64):
    """An impulse at the last position gives an answer there only."""
    inputs = jnp.zeros((1, 64, 1)).at[:, -1].set(1.0)
    answers = long_convolution(inputs, jnp.ones((64, 1)))
    np.testing.assert_allclose(answers, inputs, atol=1e-15)


def test_bfloat16_keeps_its_sums_in_float32():
    inputs, filters = arrays(63, 63, jnp.bfloat16)
    answers = long_convolution(inputs, filters)
    assert answers.dtype == jnp.bfloat16
    exact = long_convolution(inputs.astype(jnp.float32), filters.astype(jnp.float32))
    np.testing.assert_allclose(answers.astype(jnp.float32), exact, rtol=8e-3, atol=1e-4)


def test_fft_sizes():
    assert [fast_fft_size(n) for n in (1, 2, 3, 5, 7, 125, 575, 577, 1023, 1025)] == [
        2,
        2,
        4,
        6,
        8,
        128,
        576,
        640,
        1024,
        1152,
    ]
