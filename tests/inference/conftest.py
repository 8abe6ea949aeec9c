"""Tiny networks with random parameters, and small memories, so that few tokens pass several doublings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mosaics_jax.inference import memories
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig

V = 23
MOSAIC = MosaicConfig(vocab_size=V, n_layer=2, n_head=2, n_embd=16, pmem_size=8)
OPTIONS = {"key_taps": 3, "value_convolution": True, "bias": True, "weight_tying": False, "skip_tokens": 4}
CONFIGS = {
    "mosaic": MOSAIC,
    "options": dataclasses.replace(MOSAIC, pmem_count=2, pre_ln=False, variant="nano", **OPTIONS),
    "attn_only": dataclasses.replace(MOSAIC, attn_only=True, n_layer=1),
    "gpt2": GPT2Config(vocab_size=V, n_layer=2, n_head=2, n_embd=16, context_length=160, bias=True),
}


def make(config):
    """(model, params); logits vary by a few nats between tokens."""
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"]
    params = nn.meta.unbox(params)
    return model, params | {"embedding": params["embedding"] * (3 if isinstance(config, GPT2Config) else 8)}


@pytest.fixture(scope="session")
def networks():
    """(model, params) by the name of a config."""
    made = {name: make(config) for name, config in CONFIGS.items()}
    return made.__getitem__


@pytest.fixture(autouse=True)
def small_memories(monkeypatch):
    """Chunks of 16 and 4 positions, memories that grow from 32."""
    monkeypatch.setattr(memories, "CHUNKS", (16, 4))
    monkeypatch.setattr(memories, "LEAST_CAPACITY", 32)
