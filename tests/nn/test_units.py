"""Contextual and persistent memory: cases whose answers are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.contextual import ContextualMemory
from mosaics_jax.nn.memory import last_valid, write_slots
from mosaics_jax.nn.persistent import PersistentMemory
from mosaics_jax.ops.kernel_regression import gaussian_regression_naive

HEADS, WIDTH = 2, 6
CONFIG = MosaicConfig(n_head=HEADS, n_embd=WIDTH, pmem_size=5, bias=True)


def config(**fields):
    return dataclasses.replace(CONFIG, **fields)


def inputs(time, seed=0):
    return np.random.default_rng(seed).standard_normal((1, time, WIDTH)).astype(np.float32)


def unboxed(module, x):
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    return jax.tree.map(lambda box: box.value, params, is_leaf=lambda leaf: hasattr(leaf, "names"))


def test_contextual_memory_without_pairs_and_with_one():
    unit = ContextualMemory(config())
    params = unboxed(unit, inputs(4))
    params["W_z"]["bias"] = jnp.arange(6.0)
    y = unit.apply({"params": params}, inputs(4))
    np.testing.assert_allclose(y[0, 0], np.arange(6.0))
    # Position 1 sees one pair, of position 0: its value is g unit(c w_0 + (1 - c) w_1).
    raw = (inputs(4) @ params["value"]["W_psi"]["kernel"]).reshape(4, HEADS, -1)
    peek = np.asarray(params["value"]["peek"])[:, None]
    mixed = peek * raw[0] + (1 - peek) * raw[1]
    value = np.exp(-0.5) * mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
    expected = value.reshape(-1) @ params["W_z"]["kernel"] + np.arange(6.0)
    np.testing.assert_allclose(y[0, 1], expected, rtol=1e-4)
    alone = unit.apply({"params": params}, inputs(4)[:, :1])
    np.testing.assert_allclose(alone[0, 0], np.arange(6.0))


def test_without_peek_queries_still_see_earlier_pairs_only():
    unit = ContextualMemory(config(peek=False))
    params = unboxed(unit, inputs(2))
    y = unit.apply({"params": params}, inputs(2))
    np.testing.assert_array_equal(y[0, 0], np.zeros(WIDTH))
    raw = (inputs(2)[0, 0] @ params["value"]["W_psi"]["kernel"]).reshape(HEADS, -1)
    value = np.exp(-0.5) * raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    np.testing.assert_allclose(y[0, 1], value.reshape(-1) @ params["W_z"]["kernel"], rtol=1e-4)


@pytest.mark.parametrize("normalized_keys", [True, False])
def test_asymmetric_queries_are_compared_by_the_gaussian_kernel(normalized_keys):
    """beta = 1/2 over scaled keys: the same as dot products for keys of one norm, and the definition for all others."""
    unit = ContextualMemory(config(asymmetric=True, normalized_keys=normalized_keys))
    x = inputs(5)
    params = unboxed(unit, x)
    params["W_z"]["kernel"] = jnp.eye(WIDTH)
    params["query"]["bandwidth"] = jnp.array([0.05, 0.15])
    bound = unit.bind({"params": params})
    queries, keys, values = (jnp.swapaxes(a, 1, 2) for a in (bound.query(x), bound.key(x), bound.value(x)))
    earlier = np.tril(np.ones((5, 5), bool), -1)
    expected = gaussian_regression_naive(queries, keys, values, 0.5, earlier)
    y = unit.apply({"params": params}, x)
    np.testing.assert_allclose(y, jnp.swapaxes(expected, 1, 2).reshape(1, 5, WIDTH), rtol=1e-4, atol=1e-5)


def test_persistent_memory_of_one_slot():
    unit = PersistentMemory(config(pmem_size=1, pmem_count=2))
    params = unboxed(unit, inputs(3))
    y = unit.apply({"params": params}, inputs(3))
    expected = np.exp(-0.5) * np.mean(params["P_v"], axis=(0, 2)).reshape(-1) @ params["W_z"]["kernel"]
    np.testing.assert_allclose(y[0], np.broadcast_to(expected, (3, WIDTH)), rtol=1e-4, atol=1e-6)


def test_persistent_memory_has_no_mask_and_squares_the_scale_of_queries():
    unit = PersistentMemory(config())
    x = inputs(1)
    params = unboxed(unit, x)
    params["key"]["bandwidth"] = jnp.array([0.05, 0.15])
    raw = (x @ params["key"]["W_phi"]["kernel"]).reshape(HEADS, -1)
    queries = np.exp([[1.0], [3.0]]) * raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    scores = np.einsum("hd,hmd->hm", queries, params["P_k"][0])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    answers = np.exp(-0.5) * np.einsum("hm,hmd->hd", weights, params["P_v"][0])
    y = unit.apply({"params": params}, x)
    np.testing.assert_allclose(y[0, 0], answers.reshape(-1) @ params["W_z"]["kernel"], rtol=1e-4, atol=1e-6)


def test_states_after_chunks_with_padding():
    before, chunk = -np.ones((3, 2), np.float32), np.arange(18.0, dtype=np.float32).reshape(3, 3, 2)
    after = last_valid(jnp.asarray(before), jnp.asarray(chunk), np.array([0, 1, 3]))
    np.testing.assert_array_equal(after, [before[0], chunk[1, 0], chunk[2, 2]])
    after = last_valid(jnp.asarray(before), jnp.asarray(chunk[:, :1]), np.array([0, 1, 1]))
    np.testing.assert_array_equal(after, [before[0], chunk[1, 0], chunk[2, 0]])


def test_slots_are_written_at_the_length_of_each_row():
    for batch in (1, 2):
        chunk = np.arange(batch * 2.0).reshape(batch, 2, 1, 1) + 1
        length = np.array([3, 1])[:batch]
        store = np.asarray(write_slots(jnp.zeros((batch, 1, 6, 1)), jnp.asarray(chunk), length))[:, 0, :, 0]
        for row in range(batch):
            expected = np.zeros(6)
            expected[length[row] : length[row] + 2] = chunk[row, :, 0, 0]
            np.testing.assert_array_equal(store[row], expected)
