"""Small networks with all options of the configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig

VOCAB = 31
SMALL = {"vocab_size": VOCAB, "n_layer": 2, "n_head": 2, "n_embd": 16}
MOSAIC = MosaicConfig(pmem_size=7, ic_dropout=0.0, hd_dropout=0.0, **SMALL)
CONFIGS = {
    "mosaic": MOSAIC,
    "post_norm": dataclasses.replace(MOSAIC, pre_ln=False, pmem_count=2),
    "attention_only": dataclasses.replace(MOSAIC, attn_only=True, weight_tying=False),
    "convolutions": dataclasses.replace(MOSAIC, value_convolution=True, key_taps=3, bias=True),
    "nano": dataclasses.replace(MOSAIC, variant="nano", bias=True),
    "feed_forward": dataclasses.replace(MOSAIC, feed_forward=True),
    "no_peek": dataclasses.replace(MOSAIC, peek=False, leaky_average="fixed"),
    "asymmetric": dataclasses.replace(MOSAIC, asymmetric=True, leaky_average="off"),
    "unnormalized": dataclasses.replace(MOSAIC, normalized_keys=False, asymmetric=True, key_taps=2),
    "gpt2": GPT2Config(context_length=24, bias=True, dropout=0.0, **SMALL),
    "rotary": GPT2Config(rotary=True, dropout=0.0, **SMALL),
}


def build(config, seed=0):
    """A model and random parameters; scalars and biases differ from their initial values."""
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    shapes = jax.tree.map(lambda box: box.value, shapes, is_leaf=lambda leaf: hasattr(leaf, "names"))
    random = np.random.default_rng(seed)

    def fill(path, shape):
        name = path[-1].key
        base = {"scale": 1.0, "decay": 0.05, "bandwidth": 0.1, "peek": 0.5}.get(name, 0.0)
        spread = {"scale": 0.3, "decay": 0.03, "bandwidth": 0.03, "peek": 0.4, "gain": 0.03}.get(name, 0.4)
        return (base + spread * random.uniform(-1, 1, shape.shape)).astype(shape.dtype)

    return model, jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(params=CONFIGS)
def config(request):
    """The config of each small network; ``parametrize(..., indirect=True)`` selects some by name."""
    return CONFIGS[request.param]


@pytest.fixture
def make():
    """``make(config, **changed_fields)`` -> (model, params)."""
    return lambda config, **fields: build(dataclasses.replace(config, **fields))


@pytest.fixture
def tokens():
    """``tokens(batch, time, seed)``: random token ids."""

    def sample(batch, time, seed=0):
        return np.random.default_rng(seed).integers(0, VOCAB, (batch, time)).astype(np.int32)

    return sample
