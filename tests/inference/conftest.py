"""Tiny networks with random parameters, and small memories, so that few tokens pass several doublings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.inference import memories
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig

V = 23
MOSAIC = MosaicConfig(vocab_size=V, n_layer=2, n_head=2, n_embd=16, pmem_size=8, weight_tying=False)
ONE_BLOCK = dataclasses.replace(MOSAIC, n_layer=1)
OPTIONS = {"key_taps": 3, "value_convolution": True, "bias": True, "pmem_count": 2, "pre_ln": False, "skip_tokens": 4}
CONFIGS = {
    "mosaic": MOSAIC,
    "options": dataclasses.replace(ONE_BLOCK, variant="nano", **OPTIONS),
    "attn_only": dataclasses.replace(ONE_BLOCK, attn_only=True, weight_tying=True),
    "gpt2": GPT2Config(vocab_size=V, n_layer=1, n_head=2, n_embd=16, context_length=160, bias=True),
}
GAIN = {"mosaic": 3, "options": 8, "attn_only": 2, "gpt2": 8}


def make(name):
    """(model, params): large matrices, so that every unit matters and tokens differ by a few nats."""
    config = CONFIGS[name]
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8), jnp.int32))["params"]
    return model, jax.tree.map(lambda leaf: GAIN[name] * leaf if leaf.ndim > 1 else leaf, nn.meta.unbox(params))


@pytest.fixture(scope="session")
def networks():
    """(model, params) by the name of a config."""
    made = {}
    return lambda name: made[name] if name in made else made.setdefault(name, make(name))


@pytest.fixture(scope="session")
def parallel():
    """Logits (T, V) of the parallel forward for each of some rows of tokens, skipped positions included."""
    forwards = {}

    def logits(model, params, rows):
        whole = type(model)(dataclasses.replace(model.config, skip_tokens=0))
        forward = forwards.setdefault(whole, jax.jit(whole.apply))
        # Nothing behind a position matters to it: one length serves all.
        tokens_BT = np.zeros((4, 160), np.int32)
        for row, tokens in zip(tokens_BT, rows, strict=False):
            row[: len(tokens)] = tokens
        logits_BTV = np.asarray(forward({"params": params}, tokens_BT))
        return [logits_BTV[row, : len(tokens)] for row, tokens in enumerate(rows)]

    return logits


@pytest.fixture(autouse=True)
def small_memories(monkeypatch):
    """Chunks of 16 and 4 positions, memories that grow from 32."""
    monkeypatch.setattr(memories, "CHUNKS", (16, 4))
    monkeypatch.setattr(memories, "LEAST_CAPACITY", 32)
