"""`models.reference` equals `MemoryMosaic` and the authors' arrays in float64: logits, loss and all gradients."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.convert import from_torch
from mosaics_jax.convert.names import entries
from mosaics_jax.models import MemoryMosaic, MosaicConfig, reference

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
EXACT = 1e-9


def relative_error(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def loss_of(logits_BTV, targets_BT):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], axis=-1))


@pytest.mark.parametrize("name", ["lib_base", "lib_pmem2", "lib_clamp", "nano_mosaic", "nano_mosaic_clamp"])
def test_equals_the_library_and_the_authors(x64, name):
    recorded = dict(np.load(GOLDEN / f"{name}.npz"))
    assert name in json.loads((GOLDEN / "manifest.json").read_text())
    arrays = {key.removeprefix("param/"): a for key, a in recorded.items() if key.startswith("param/")}
    config, params = from_torch(arrays)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    model = MemoryMosaic(MosaicConfig(**{**vars(config), "dtype": "float64"}))
    tokens, targets = recorded["idx"], jnp.asarray(recorded["tgt"])

    @jax.jit
    def ours(params):
        def loss(params):
            logits = reference.apply(config, params, tokens)
            return loss_of(logits, targets), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    @jax.jit
    def library(params):
        def loss(params):
            return model.apply({"params": params}, tokens, targets, method="loss")[0]

        return model.apply({"params": params}, tokens), jax.grad(loss)(params)

    (loss, logits), gradients = ours(params)
    library_logits, library_gradients = library(params)
    assert relative_error(logits, recorded["logits_f64"]) < EXACT
    assert relative_error(loss[None], recorded["loss_f64"]) < EXACT
    assert relative_error(logits, library_logits) < EXACT
    errors = jax.tree.map(relative_error, gradients, library_gradients)
    assert max(jax.tree.leaves(errors)) < EXACT, errors
    for entry in entries(config):
        gradient = np.asarray(functools.reduce(lambda node, key: node[key], entry.path, gradients))
        gradient = gradient if entry.bank is None else gradient[entry.bank]
        if f"grad_f64/{entry.name}" in recorded:  # a tied matrix is recorded under one of its names
            gradient = gradient.transpose(np.argsort(entry.order)).reshape(entry.shape)
            assert relative_error(gradient, recorded[f"grad_f64/{entry.name}"]) < EXACT, entry.name


def test_an_option_that_the_page_leaves_out_is_an_error():
    config = MosaicConfig(vocab_size=7, n_layer=1, n_head=1, n_embd=4, pmem_size=3, asymmetric=True)
    with pytest.raises(ValueError, match="asymmetric=True"):
        reference.apply(config, {}, jnp.zeros((1, 3), jnp.int32))
