"""Filters against their definitions by sorting, and draws against the probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.inference import Sampling
from mosaics_jax.inference.sampling import draw, keep_top_k, keep_top_p, prompt_keys

LOGITS = 3 * np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)


def kept(logits_BV):
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(logits_BV)]


@pytest.mark.parametrize("k", [1, 3, 40, 99])
def test_top_k(k):
    assert kept(keep_top_k(jnp.asarray(LOGITS), k)) == [set(np.argsort(-row)[:k].tolist()) for row in LOGITS]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.99])
def test_top_p_keeps_the_fewest_that_reach_it(p):
    filtered = keep_top_p(jnp.asarray(LOGITS), p)
    for row, found in zip(LOGITS, kept(filtered), strict=True):
        order = np.argsort(-row)
        probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        enough = 1 + int(np.argmax(np.cumsum(probability[order]) >= p))
        assert found == set(order[:enough].tolist())
    np.testing.assert_array_equal(np.asarray(filtered)[np.isfinite(filtered)], LOGITS[np.isfinite(filtered)])


def test_top_p_after_top_k_and_ties():
    logits = jnp.asarray([[2.0, 2.0, 1.0, 0.0, -jnp.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert kept(keep_top_k(logits, 1)) == [{0, 1}, {0, 1, 2, 3, 4}]
    assert kept(keep_top_p(logits, 0.3)) == [{0, 1}, {0, 1, 2, 3, 4}]
    assert kept(keep_top_p(keep_top_k(logits, 3), 0.9)) == [{0, 1, 2}, {0, 1, 2, 3, 4}]
    assert kept(keep_top_p(logits, 0.9999999))[0] == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.5), Sampling(2.0, top_k=4), Sampling(1.0, top_p=0.8)], ids=str
)
def test_draws_follow_the_probabilities(sampling):
    draws = 4000
    logits_V = np.array([2.0, 1.5, 1.0, 0.0, -1.0, -np.inf], np.float32)
    scaled = logits_V / sampling.temperature
    if sampling.top_k:
        scaled = np.asarray(keep_top_k(jnp.asarray(scaled)[None], sampling.top_k))[0]
    if sampling.top_p < 1:
        scaled = np.asarray(keep_top_p(jnp.asarray(scaled)[None], sampling.top_p))[0]
    probability = np.exp(scaled) / np.exp(scaled).sum()
    key_B = jax.random.split(jax.random.key(0), draws)
    token_B = jax.jit(draw, static_argnums=2)(key_B, jnp.tile(logits_V, (draws, 1)), sampling)
    share = np.bincount(token_B, minlength=6) / draws
    assert np.all(share[probability == 0] == 0)
    np.testing.assert_allclose(share, probability, atol=4 * 0.5 / draws**0.5)


def test_extreme_temperatures():
    key_B = jax.random.split(jax.random.key(0), len(LOGITS))
    best = LOGITS.argmax(-1).tolist()
    for temperature in (0.0, 1e-30):
        assert draw(key_B, jnp.asarray(LOGITS), Sampling(temperature)).tolist() == best
    assert draw(key_B, jnp.asarray(LOGITS), Sampling(5.0, top_k=1)).tolist() == best
    assert draw(key_B, jnp.asarray(LOGITS), Sampling(5.0, top_p=1e-9)).tolist() == best


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}])
def test_refuses_settings_that_mean_nothing(bad):
    ((name, _),) = bad.items()
    with pytest.raises(ValueError, match=f"{name}="):
        Sampling(**bad)


def test_keys_depend_on_seed_prompt_and_repetition_alone():
    def data(seed, prompts):
        return [tuple(row) for row in jax.random.key_data(prompt_keys(seed, prompts)).tolist()]

    a, b, again = data(0, [[1, 2], [3], [1, 2]])
    assert len({a, b, again}) == 3
    assert data(0, [[3], [1, 2], [1, 2]]) == [b, a, again]
    assert data(1, [[3]]) != [b] and data(2**32 - 1, [[3]]) == data(-1, [[3]])
