"""No position knows its future, whatever the form; every position knows its past; a prefix is a sequence of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mosaics_jax.ops.retrieval

TIME = 11
EXACT = 2e-5


def forward(model, params):
    return jax.jit(lambda tokens: model.apply({"params": params}, tokens))


def changed_everywhere(tokens):
    """Row 0 is the sequence, row t + 1 the sequence with another token at t."""
    rows = np.repeat(tokens, TIME + 1, axis=0)
    for t in range(TIME):
        rows[t + 1, t] = (rows[t + 1, t] + 1) % 31
    return rows


def check_causality(logits):
    change = np.max(np.abs(logits[1:] - logits[0]), axis=-1)
    earlier = np.tril(np.ones((TIME, TIME), bool), -1)
    assert np.max(change[earlier]) < EXACT
    # The token itself matters at once, and every token still matters at the last position.
    assert np.min(np.diag(change)) > 10 * EXACT
    assert np.min(change[:, -1]) > 10 * EXACT


def test_no_leak_and_prefixes(network, tokens):
    run = forward(*network)
    logits = np.asarray(run(changed_everywhere(tokens(1, TIME))))
    check_causality(logits)
    for length in (1, 2, 7):
        prefix = run(changed_everywhere(tokens(1, TIME))[:, :length])
        np.testing.assert_allclose(prefix, logits[:, :length], atol=EXACT)


@pytest.mark.parametrize("kind", ["mosaic", "gpt2"])
def test_no_leak_over_blocks(monkeypatch, mosaic_config, gpt2_config, make, tokens, kind):
    monkeypatch.setattr(mosaics_jax.ops.retrieval, "BLOCK", 4)
    config = dataclasses.replace(mosaic_config if kind == "mosaic" else gpt2_config, retrieval="blockwise")
    check_causality(np.asarray(forward(*make(config))(changed_everywhere(tokens(1, TIME)))))


def test_gradients_are_causal_and_finite_from_the_first_position(network, tokens):
    """The loss at position t alone has no gradient in the embeddings of tokens that occur only later."""
    model, params = network
    sequence = np.arange(TIME, dtype=np.int32)[None]
    targets = (sequence + 1) % 31

    model = type(model)(dataclasses.replace(model.config, weight_tying=False))
    params = params | {"head": params["embedding"]}

    @jax.jit
    @jax.grad
    def gradient(params, targets):
        return model.apply({"params": params}, sequence, targets, method="loss")[0]

    for t in (0, 1, TIME - 1):
        grads = gradient(params, np.where(np.arange(TIME) == t, targets, -1))
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
        touched = np.max(np.abs(grads["embedding"]), axis=-1)
        assert np.all(touched[t + 1 :] == 0) and np.all(touched[: t + 1] > 0)


def test_any_length(mosaic_config, gpt2_config, make, tokens):
    """A mosaic has no limit on T; the baseline says what its is."""
    model, params = make(mosaic_config)
    assert model.apply({"params": params}, tokens(1, 300)).shape == (1, 300, 31)
    model, params = make(gpt2_config)
    with pytest.raises(ValueError, match="25 positions, but only 24"):
        model.apply({"params": params}, tokens(1, 25))
    with pytest.raises(ValueError, match=r"\(batch, time\)"):
        model.apply({"params": params}, jnp.zeros(5, jnp.int32))
