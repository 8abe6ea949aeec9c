"""The network of the three moons: its size, its complex-linear maps, and bad configs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig, complex_form, moduli, projected_uniform, real_form


@pytest.mark.parametrize("heads", [1, 3])
def test_has_54_parameters(heads):
    params = MoonMosaic(MoonMosaicConfig(heads=heads)).init(jax.random.key(0), jnp.zeros((1, 5, 6)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(params))) == 54


def test_real_form_acts_as_the_complex_matrix():
    random = np.random.default_rng(0)
    w = random.normal(size=(2, 3, 4))
    z = random.normal(size=4) + 1j * random.normal(size=4)
    product = (w[0] + 1j * w[1]) @ z
    # Channels are (sin, cos). The block [[a, b], [-b, a]] acts on them as a + i b acts on sin - i cos.
    channels = np.stack([z.real, -z.imag], axis=-1).reshape(-1)
    expected = np.stack([product.real, -product.imag], axis=-1).reshape(-1)
    np.testing.assert_allclose(np.asarray(real_form(jnp.asarray(w))) @ channels, expected, rtol=1e-5)
    np.testing.assert_allclose(moduli(jnp.asarray(w)), np.abs(w[0] + 1j * w[1]), rtol=1e-6)


def test_complex_form_is_the_nearest():
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(6, 6)), jnp.float32)
    projected = real_form(complex_form(matrix))
    np.testing.assert_allclose(real_form(complex_form(projected)), projected, rtol=1e-6)
    # The residual is orthogonal to every complex-linear matrix.
    other = real_form(jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 3)), jnp.float32))
    assert abs(float(jnp.sum((matrix - projected) * other))) < 1e-4


def test_initial_values():
    w = np.asarray(projected_uniform(jax.random.key(0), (2, 3, 3)))
    many = np.asarray(jax.vmap(lambda key: projected_uniform(key, (2, 3, 3)))(jax.random.split(jax.random.key(1), 500)))
    assert w.shape == (2, 3, 3)
    assert np.abs(many).max() <= 1 / np.sqrt(6)
    # An entry is the mean of two uniform numbers of variance 1/18.
    assert many.var() == pytest.approx(1 / 36, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moons": 2, "heads": 3}, "more than moons=2"),
        ({"moons": 4, "heads": 3}, "must divide"),
        ({"heads": 0}, "at least 1"),
        ({"sharpness": 0.0}, "positive"),
    ],
)
def test_bad_configs_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        MoonMosaicConfig(**fields)


def test_a_signal_of_another_width_is_an_error():
    with pytest.raises(ValueError, match=r"\(batch, time, 6\)"):
        MoonMosaic(MoonMosaicConfig()).init(jax.random.key(0), jnp.zeros((1, 5, 4)))
