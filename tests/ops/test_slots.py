"""Retrieval from fixed slots: every form against its definition, and dropout."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mosaics_jax.ops import RetrievalForm, blockwise, slot_retrieval

FORMS = [RetrievalForm.NAIVE, RetrievalForm.BLOCKWISE]
RATE = 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes several blocks of queries, the last one padded."""
    monkeypatch.setattr(blockwise, "block_size_for_slots", lambda: 40)


def slot_definition(queries, keys, values):
    scores = jnp.einsum("bthd,khmd->kbhtm", queries, keys)
    weights = jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)
    return jnp.einsum("kbhtm,khmd->kbthd", weights, values).mean(0)


SLOTS = [("float32", 1, 1), ("float32", 2, 2), ("float32", 63, 1), ("float32", 130, 2), ("bfloat16", 63, 2)]


@pytest.mark.parametrize("dtype, time, banks", SLOTS)
def test_slots(assert_same, normal, dtype, time, banks):
    args = (normal(2, time, 3, 4), normal(banks, 3, 7, 4, seed=1), normal(banks, 3, 7, 4, seed=2))
    forms = [functools.partial(slot_retrieval, form=form) for form in FORMS]
    assert_same(slot_definition, forms, args, dtype)


def test_slot_dropout_is_the_same_in_every_form(assert_same, normal):
    args = (normal(2, 63, 3, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 4, seed=2))
    common = {"dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}
    naive, by_blocks = (functools.partial(slot_retrieval, form=form, **common) for form in FORMS)
    assert_same(naive, [by_blocks], args)


@pytest.mark.parametrize("dtype, time, slots", [("float32", 150, 7), ("float32", 63, 300), ("bfloat16", 63, 300)])
def test_pallas(assert_same, normal, dtype, time, slots):
    """In an interpreter, with several blocks of queries or slots, and with the same weights dropped."""
    args = (normal(2, time, 3, 4), normal(1, 3, slots, 4, seed=1), normal(1, 3, slots, 4, seed=2))
    with pltpu.force_tpu_interpret_mode():
        assert_same(slot_definition, [functools.partial(slot_retrieval, form=RetrievalForm.PALLAS)], args, dtype)
        if dtype == "float32":
            common = {"dropout_rate": RATE, "dropout_seed": jnp.uint32(7)}
            naive, pallas = (
                functools.partial(slot_retrieval, form=form, **common)
                for form in (RetrievalForm.NAIVE, RetrievalForm.PALLAS)
            )
            assert_same(naive, [pallas], args)


def test_slot_dropout_rate():
    """With one slot of value 1, an answer is the mean of the kept weights of two banks, which drop independently."""
    queries, slots = np.zeros((20, 100, 5, 1), np.float32), np.ones((2, 5, 1, 1), np.float32)
    answers = slot_retrieval(queries, slots, slots, dropout_rate=RATE, dropout_seed=jnp.uint32(3))
    kept = np.round(np.asarray(answers) * 2 * (1 - RATE)).astype(int)
    share = np.bincount(kept.ravel(), minlength=3) / kept.size
    np.testing.assert_allclose(share, [RATE**2, 2 * RATE * (1 - RATE), (1 - RATE) ** 2], atol=0.02)


def test_dropout_without_a_seed_is_an_error(normal):
    slots = normal(1, 1, 4, 2)
    with pytest.raises(ValueError, match="dropout_seed"):
        slot_retrieval(normal(1, 3, 1, 2), slots, slots, dropout_rate=0.1)
