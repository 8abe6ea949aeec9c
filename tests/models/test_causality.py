"""Outputs depend on all earlier tokens and on no later one, and those of a prefix equal those of the whole."""

import jax
import numpy as np
import pytest

import mosaics_jax.ops.blockwise

TIME = 11
EXACT = 2e-5

some = pytest.mark.parametrize("config", ["mosaic", "gpt2"], indirect=True)


def changed_everywhere(tokens):
    """Row 0 is the sequence; row t + 1 is the sequence with another token at position t."""
    rows = np.repeat(tokens, TIME + 1, axis=0)
    for t in range(TIME):
        rows[t + 1, t] = (rows[t + 1, t] + 1) % 31
    return rows


def check_causality(logits):
    change = np.max(np.abs(logits[1:] - logits[0]), axis=-1)
    earlier = np.tril(np.ones((TIME, TIME), bool), -1)
    assert np.max(change[earlier]) < EXACT
    # Every token changes the output at its own position and at the last one.
    assert np.min(np.diag(change)) > 10 * EXACT
    assert np.min(change[:, -1]) > 10 * EXACT


def test_no_dependence_on_later_tokens_and_prefixes(config, make, tokens):
    model, params = make(config, n_layer=1)
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    rows = changed_everywhere(tokens(1, TIME))
    logits = np.asarray(run(rows))
    check_causality(logits)
    for length in (1, 6):
        np.testing.assert_allclose(run(rows[:, :length]), logits[:, :length], atol=EXACT)


@some
def test_no_dependence_on_later_tokens_blockwise(monkeypatch, config, make, tokens):
    monkeypatch.setattr(mosaics_jax.ops.blockwise, "BLOCK", 4)
    model, params = make(config, retrieval="blockwise")
    check_causality(np.asarray(jax.jit(model.apply)({"params": params}, changed_everywhere(tokens(1, TIME)))))


def test_gradients_are_causal_and_finite_from_the_first_position(config, make, tokens):
    """The loss at position t alone has no gradient in the embeddings of tokens that occur only later."""
    model, params = make(config, n_layer=1, weight_tying=False)
    sequence = np.arange(TIME, dtype=np.int32)[None]
    targets = (sequence + 1) % 31

    def loss(params, targets):
        return model.apply({"params": params}, sequence, targets, method="loss")[0]

    gradient = jax.jit(jax.grad(loss))
    for t in (0, 1, TIME - 1):
        grads = gradient(params, np.where(np.arange(TIME) == t, targets, -1))
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
        touched = np.max(np.abs(grads["embedding"]), axis=-1)
        assert np.all(touched[t + 1 :] == 0) and np.all(touched[: t + 1] > 0)


@some
def test_length_limits(config, make, tokens):
    """A mosaic has no limit on T; exceeding the limit of the baseline is an error."""
    model, params = make(config, n_layer=1)
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    if model.max_positions is None:
        assert run(tokens(1, 300)).shape == (1, 300, 31)
    else:
        with pytest.raises(ValueError, match="25 positions, but only 24"):
            run(tokens(1, 25))
    with pytest.raises(ValueError, match=r"\(batch, time\)"):
        run(tokens(1, 5)[0])
