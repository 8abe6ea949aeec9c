"""Decoding equals the parallel form at every position: token by token, in chunks, with rows of different lengths."""

import jax
import numpy as np
import pytest

import mosaics_jax.ops.blockwise

TIME = 12
# (size of a chunk, number of its valid tokens per row): chunks of 4, then single tokens. Rows end at different lengths.
PLAN = [(4, (4, 1, 0)), (4, (4, 4, 3)), (1, (1, 1, 1)), (1, (1, 0, 1)), (1, (0, 1, 1)), (1, (1, 1, 0))]
ONE_ROW = [(4, (4,))] + [(1, (1,))] * 5

some = pytest.mark.parametrize("config", ["mosaic", "gpt2"], indirect=True)


@pytest.fixture
def decode():
    def run(model, params, tokens, plan, padding, capacity):
        """The logits of all valid tokens of each row; the chunks of ``plan`` are padded with tokens of ``padding``."""
        extend = jax.jit(lambda *args: model.apply({"params": params}, *args, method="extend"))
        memory = jax.jit(lambda: model.apply({"params": params}, len(tokens), capacity, method="empty_memory"))()
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

    return run


def test_chunks_with_padding_and_single_tokens(config, make, decode, monkeypatch, tokens):
    monkeypatch.setattr(mosaics_jax.ops.blockwise, "BLOCK", 5)
    model, params = make(config)
    sequence = tokens(3, TIME)
    parallel = np.asarray(jax.jit(model.apply)({"params": params}, sequence))
    for row, logits in enumerate(decode(model, params, sequence, PLAN, tokens(3, 4, seed=1), capacity=20)):
        assert len(logits) >= 6
        np.testing.assert_allclose(logits, parallel[row, : len(logits)], atol=1e-5)


@some
def test_one_row_that_fills_its_memory(config, make, decode, tokens):
    model, params = make(config)
    (logits,) = decode(model, params, tokens(1, 9), ONE_ROW, tokens(1, 4, seed=1), capacity=9)
    np.testing.assert_allclose(logits, jax.jit(model.apply)({"params": params}, tokens(1, 9))[0], atol=1e-5)


@some
def test_bfloat16(config, make, decode, tokens):
    """Logits are float32, and those of both forms are close to those of the float32 network."""
    exact, params = make(config)
    half, _ = make(config, dtype="bfloat16")
    exact = np.asarray(jax.jit(exact.apply)({"params": params}, tokens(1, 9))[0])
    parallel = jax.jit(half.apply)({"params": params}, tokens(1, 9))[0]
    (decoded,) = decode(half, params, tokens(1, 9), ONE_ROW, tokens(1, 4, seed=1), capacity=9)
    for logits in (parallel, decoded):
        assert logits.dtype == np.float32
        assert np.max(np.abs(logits - exact)) < 0.2 * np.std(exact)


@some
def test_logits_of_the_last_token_only(config, make, tokens):
    model, params = make(config)

    @jax.jit
    def both(tokens, valid):
        memory = model.apply({"params": params}, 3, 8, method="empty_memory")
        return [model.apply({"params": params}, tokens, memory, valid, method=m) for m in ("extend", "extend_last")]

    (whole, after), (last, same) = both(tokens(3, 4), np.array([4, 1, 2], np.int32))
    np.testing.assert_allclose(last, whole[np.arange(3), [3, 0, 1]], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after, same)


@some
def test_decoding_with_scanned_layers_is_an_error(config, make):
    model, params = make(config, scan_layers=True)
    with pytest.raises(ValueError, match="unstack_layers"):
        model.apply({"params": params}, 1, 8, method="empty_memory")
