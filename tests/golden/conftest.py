"""Fixtures: the arrays that were recorded from the authors' code, and our models with the recorded parameters."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.convert import from_torch
from mosaics_jax.convert.names import entries
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, stack_layers, unstack_layers

HERE = pathlib.Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())


class Recording:
    """A recorded language model, or a recorded training run: its arrays, and our model with the same parameters."""

    def __init__(self, name):
        self.settings = MANIFEST[name]
        self.arrays = dict(np.load(HERE / f"{name}.npz"))
        if not name.endswith("_train10"):
            gelu = "erf" if name.startswith("nano") else "tanh"
            pre_ln = self.settings.get("pre_ln", True)
            config, self.params = from_torch(self.part("param/"), pre_ln=pre_ln, n_head=4, gelu=gelu)
            self.config = dataclasses.replace(config, skip_tokens=self.settings.get("skip_tokens", 0))

    def part(self, prefix):
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}

    def model(self, dtype, **fields):
        config = dataclasses.replace(self.config, dtype=dtype, **fields)
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), self.params)
        model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
        return model, stack_layers(params) if config.scan_layers else params

    def gradient(self, model):
        """Compiled (params, tokens, targets) -> (loss, gradients)."""

        def loss(params, tokens, targets):
            return model.apply({"params": params}, tokens, targets, method="loss")[0]

        return jax.jit(jax.value_and_grad(loss))

    def logits(self, model):
        """Compiled (params, tokens) -> logits."""
        return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))

    def named(self, tree):
        """A tree with the structure of the parameters as a dict of the authors' names; a tied matrix has both names."""
        if "blocks" in tree:
            tree = unstack_layers(tree)
        named = {}
        for entry in entries(self.config):
            leaf = np.asarray(functools.reduce(lambda node, key: node[key], entry.path, tree), np.float64)
            leaf = leaf if entry.bank is None else leaf[entry.bank]
            named[entry.name] = leaf.transpose(np.argsort(entry.order)).reshape(entry.shape)
        return named


@pytest.fixture(scope="session")
def recorded():
    """``recorded(name)`` -> Recording."""
    return functools.cache(Recording)


@pytest.fixture(scope="session")
def relative_error():
    """The largest difference of two arrays, divided by the largest magnitude of the second."""

    def error(ours, theirs):
        ours = np.asarray(ours, np.float64)
        assert ours.shape == theirs.shape
        return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))

    return error
