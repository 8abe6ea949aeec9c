"""Ablations of the mosaic: numbers of parameters, their sharding, and that the authors' format cannot hold them.

Causality, decoding and scanned layers of the ablations are tested with all other networks.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mosaics_jax.convert import to_torch
from mosaics_jax.errors import UserError
from mosaics_jax.models import MemoryMosaic, MosaicConfig
from mosaics_jax.sharding import RULES

CONFIG = MosaicConfig(vocab_size=31, n_layer=2, n_head=2, n_embd=16, pmem_size=7)
SCALARS = CONFIG.n_head
# Changed fields, and the number of parameters that they add to a block.
ABLATIONS = [
    ({"leaky_average": "fixed"}, -2 * SCALARS),
    ({"leaky_average": "off"}, -2 * SCALARS),
    ({"peek": False}, -SCALARS),
    ({"asymmetric": True}, CONFIG.n_embd**2 + 2 * SCALARS),
    ({"asymmetric": True, "leaky_average": "off"}, CONFIG.n_embd**2 + SCALARS - 2 * SCALARS),
    ({"normalized_keys": False}, 0),
]
ablations = pytest.mark.parametrize("fields, growth", ABLATIONS, ids=lambda value: str(value))


def boxed_shapes(config):
    model = MemoryMosaic(config)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def size(config):
    return sum(leaf.size for leaf in jax.tree.leaves(boxed_shapes(config)))


@ablations
def test_parameters(fields, growth):
    assert size(dataclasses.replace(CONFIG, **fields)) == size(CONFIG) + CONFIG.n_layer * growth


@ablations
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_axis_of_a_parameter_has_a_sharding_rule(fields, growth, scan_layers):
    rules = dict(RULES)
    boxes = jax.tree.leaves(
        boxed_shapes(dataclasses.replace(CONFIG, scan_layers=scan_layers, **fields)),
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
    for box in boxes:
        assert len(box.names) == box.value.ndim and all(name in rules for name in box.names)


def test_feed_forward_is_as_large_as_persistent_memory_of_3_c_slots():
    """Apart from the scalars of the memory's heads: decay, bandwidth, gain."""
    persistent = dataclasses.replace(CONFIG, pmem_size=3 * CONFIG.n_embd)
    feed_forward = dataclasses.replace(CONFIG, feed_forward=True)
    assert size(persistent) == size(feed_forward) + CONFIG.n_layer * 3 * SCALARS


@ablations
def test_the_authors_format_refuses_ablations(fields, growth):
    config = dataclasses.replace(CONFIG, **fields)
    with pytest.raises(UserError) as refusal:
        to_torch(config, {})
    message = str(refusal.value)
    assert all(f"{name}={value}" in message for name, value in fields.items()) and "\n" not in message
