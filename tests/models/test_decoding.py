"""Decoding equals the parallel form at every position: by tokens, by chunks, with rows at different lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mosaics_jax.ops.retrieval

TIME = 12
# How many of each chunk's tokens are real, row by row: chunks of 4, then single tokens. Rows end at different lengths.
PLAN = [(4, (4, 1, 0)), (4, (4, 4, 3)), (1, (1, 1, 1)), (1, (1, 0, 1)), (1, (0, 1, 1)), (1, (1, 1, 0))]


def decode(model, params, tokens, plan, padding, capacity=20):
    """Logits of every real token of each row, the chunks of ``plan`` padded with random tokens."""
    extend = jax.jit(lambda *args: model.apply({"params": params}, *args, method="extend"))
    memory = model.apply({"params": params}, len(tokens), capacity, method="empty_memory")
    length = np.zeros(len(tokens), int)
    rows = [[] for _ in tokens]
    for size, valid in plan:
        chunk = padding[:, :size].copy()
        for row, count in enumerate(valid):
            chunk[row, :count] = tokens[row, length[row] : length[row] + count]
        logits, memory = extend(chunk, memory, np.array(valid, np.int32))
        for row, count in enumerate(valid):
            rows[row].append(logits[row, :count])
        length += valid
    np.testing.assert_array_equal(memory.length_B, length)
    return [np.concatenate(row) for row in rows]


def test_ragged_chunks_and_tokens(network, monkeypatch, tokens):
    monkeypatch.setattr(mosaics_jax.ops.retrieval, "BLOCK", 5)
    model, params = network
    sequence = tokens(3, TIME)
    parallel = np.asarray(jax.jit(model.apply)({"params": params}, sequence))
    for row, logits in enumerate(decode(model, params, sequence, PLAN, padding=tokens(3, 4, seed=1))):
        assert len(logits) >= 6
        np.testing.assert_allclose(logits, parallel[row, : len(logits)], atol=1e-5)


@pytest.mark.parametrize("kind", ["mosaic", "gpt2"])
def test_one_row(mosaic_config, gpt2_config, make, tokens, kind):
    model, params = make(mosaic_config if kind == "mosaic" else gpt2_config)
    sequence = tokens(1, 9)
    plan = [(3, (3,))] + 6 * [(1, (1,))]
    (logits,) = decode(model, params, sequence, plan, padding=tokens(1, 3, seed=1), capacity=9)
    np.testing.assert_allclose(logits, model.apply({"params": params}, sequence)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["mosaic", "gpt2"])
def test_bfloat16(mosaic_config, gpt2_config, make, tokens, kind):
    """Logits stay float32, and both forms stay near the float32 network."""
    config = mosaic_config if kind == "mosaic" else gpt2_config
    model, params = make(dataclasses.replace(config, dtype="bfloat16"))
    exact = type(model)(config).apply({"params": params}, tokens(1, 9))[0]
    scale = float(jnp.std(exact))
    parallel = model.apply({"params": params}, tokens(1, 9))
    assert parallel.dtype == jnp.float32
    (logits,) = decode(model, params, tokens(1, 9), [(3, (3,))] + 6 * [(1, (1,))], padding=tokens(1, 3, seed=1))
    assert logits.dtype == np.float32
    assert np.max(np.abs(parallel[0] - exact)) < 0.2 * scale
    assert np.max(np.abs(logits - exact)) < 0.2 * scale


def test_last_logits(mosaic_config, make, tokens):
    model, params = make(mosaic_config)
    memory = model.apply({"params": params}, 3, 8, method="empty_memory")
    args = (tokens(3, 4), memory, np.array([4, 1, 2], np.int32))
    whole, after = model.apply({"params": params}, *args, method="extend")
    last, same = model.apply({"params": params}, *args, method="extend_last")
    np.testing.assert_allclose(last, whole[np.arange(3), [3, 0, 1]], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, same)


def test_scanned_layers_are_refused(mosaic_config, make):
    model, params = make(dataclasses.replace(mosaic_config, scan_layers=True))
    with pytest.raises(ValueError, match="unstack_layers"):
        model.apply({"params": params}, 1, 8, method="empty_memory")
