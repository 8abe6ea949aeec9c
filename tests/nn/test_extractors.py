"""Key and value extractors: scales, bounds, and on which positions they depend."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.extractors import KeyExtractor, ValueExtractor

HEADS, WIDTH, TIME = 2, 6, 5


def inputs(seed=0):
    return np.random.default_rng(seed).standard_normal((1, TIME, WIDTH)).astype(np.float32)


def key_extractor(squared_scale=False, **fields):
    module = KeyExtractor(MosaicConfig(n_head=HEADS, n_embd=WIDTH, **fields), squared_scale)
    params = jax.jit(module.init)(jax.random.key(0), inputs())["params"]
    return module, jax.tree.map(lambda box: box.value, params, is_leaf=lambda leaf: hasattr(leaf, "names"))


@pytest.mark.parametrize("power", [1, 2])
def test_keys_have_the_norm_of_their_scale(power):
    module, params = key_extractor(squared_scale=power == 2)
    params["bandwidth"] = jnp.array([0.03, -0.2])
    keys = module.apply({"params": params}, inputs())
    norms = np.linalg.norm(keys, axis=-1)
    np.testing.assert_allclose(norms, np.broadcast_to(np.exp(power * np.array([0.3, -2.0])), norms.shape), rtol=1e-5)


def test_the_gradient_of_the_scale_is_whole_at_the_bound_and_zero_above():
    module, params = key_extractor()

    def total(bandwidth):
        keys = module.apply({"params": params | {"bandwidth": bandwidth}}, inputs())
        return jnp.sum(jnp.abs(keys)), keys

    gradient, keys = jax.grad(total, has_aux=True)(jnp.array([0.5, 0.6]))
    np.testing.assert_allclose(np.linalg.norm(keys, axis=-1), np.exp(5.0), rtol=1e-5)
    assert gradient[0] > 0 and gradient[1] == 0


def test_the_sign_of_a_decay_does_not_matter():
    module, params = key_extractor()
    keys = [module.apply({"params": params | {"decay": jnp.array(d)}}, inputs()) for d in ([0.1, 0.2], [-0.1, 0.2])]
    np.testing.assert_array_equal(*keys)


def test_a_convolution_of_keys_and_the_order_of_its_taps():
    """With a huge decay rate, key t depends on the positions t - 2 .. t only, with zeros before the first."""
    module, params = key_extractor(key_taps=3)
    params["decay"] = jnp.full(HEADS, 100.0)
    x = inputs()
    keys = module.apply({"params": params}, x)
    padded = np.concatenate([np.zeros((1, 2, WIDTH), np.float32), x], axis=1)
    kernel = np.asarray(params["W_phi"]["kernel"])
    raw = sum(padded[:, s : s + TIME] @ kernel[s] for s in range(3)).reshape(1, TIME, HEADS, -1)
    expected = np.exp(1.0) * raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(keys, expected, rtol=1e-4, atol=1e-5)


def raw_keys(params, x):
    return (x @ np.asarray(params["W_phi"]["kernel"])).reshape(1, TIME, HEADS, -1)


def test_fixed_decays_are_the_initial_values_of_learned_ones():
    learned, params = key_extractor()
    fixed, fewer = key_extractor(leaky_average="fixed")
    assert fewer.keys() == params.keys() - {"decay"}
    keys = [module.apply({"params": params}, inputs()) for module in (learned, fixed)]
    np.testing.assert_array_equal(*keys)


def test_without_a_leaky_average_a_key_depends_on_its_position_only():
    module, params = key_extractor(leaky_average="off")
    assert params.keys() == {"W_phi", "bandwidth"}
    raw = raw_keys(params, inputs())
    expected = np.exp(1.0) * raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(module.apply({"params": params}, inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leaky_average", ["learned", "off"])
def test_unnormalized_keys_have_the_norm_of_the_average(leaky_average):
    module, params = key_extractor(squared_scale=True, leaky_average=leaky_average, normalized_keys=False)
    rate = np.array([0.5, 5.0]) if leaky_average == "learned" else np.array([np.inf, np.inf])
    raw = raw_keys(params, inputs())
    mean = np.zeros_like(raw)
    for t in range(TIME):
        for s in range(t + 1):
            power = np.exp(-rate * (t - s)) if s < t else np.ones(HEADS)
            mean[:, t] += ((1 - np.exp(-rate)) * power)[:, None] * raw[:, s]
    expected = np.exp(2.0) * mean / np.sqrt(WIDTH // HEADS)
    np.testing.assert_allclose(module.apply({"params": params}, inputs()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convolution", [False, True])
def test_a_value_depends_on_its_position_and_the_next(convolution):
    module = ValueExtractor(MosaicConfig(n_head=HEADS, n_embd=WIDTH, value_convolution=convolution))
    x = inputs()
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda box: box.value, params, is_leaf=lambda leaf: hasattr(leaf, "names"))
    now, later = module.apply({"params": params}, x, method="parts")
    assert now.shape == later.shape == (1, TIME, HEADS, WIDTH // HEADS)
    kernel = np.asarray(params["W_psi"]["kernel"])
    if convolution:
        expected = [(x @ kernel[s]).reshape(now.shape) for s in range(2)]
    else:
        peek = np.asarray(params["peek"])[:, None]
        raw = (x @ kernel).reshape(now.shape)
        expected = [peek * raw, (1 - peek) * raw]
    np.testing.assert_allclose(now, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(later, expected[1], rtol=1e-4, atol=1e-5)
    values = module.apply({"params": params}, now, method="value")
    np.testing.assert_allclose(np.linalg.norm(values, axis=-1), np.exp(-0.5), rtol=1e-5)


def test_without_peek_a_value_depends_on_its_position_only():
    module = ValueExtractor(MosaicConfig(n_head=HEADS, n_embd=WIDTH, peek=False))
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), inputs())["params"])
    assert params.keys() == {"W_psi", "gain"}
    now, later = module.apply({"params": params}, inputs(), method="parts")
    np.testing.assert_allclose(now.reshape(1, TIME, WIDTH), inputs() @ params["W_psi"]["kernel"], rtol=1e-4, atol=1e-5)
    assert not later.any()


@pytest.mark.parametrize("taps", [1, 3])
def test_initial_variance_of_convolutions(taps):
    """As in the authors' code: the variance is 1 / (C S) for width C and S taps."""
    width = 128
    x = jnp.zeros((1, 4, width))
    config = MosaicConfig(n_head=HEADS, n_embd=width, key_taps=taps, value_convolution=True)
    module = KeyExtractor(config)
    key_kernel = module.init(jax.random.key(0), x)["params"]["W_phi"]["kernel"].value
    assert float(key_kernel.std()) == pytest.approx((width * taps) ** -0.5, rel=0.05)
    module = ValueExtractor(config)
    value_kernel = module.init(jax.random.key(0), x)["params"]["W_psi"]["kernel"].value
    assert float(value_kernel.std()) == pytest.approx((2 * width) ** -0.5, rel=0.05)
