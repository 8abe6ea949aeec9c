"""Single memory units against arrays of the authors' code: outputs, intermediate arrays, gradients of all arguments."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.nn.config import MosaicConfig
from mosaics_jax.nn.contextual import ContextualMemory
from mosaics_jax.nn.layers import Projection
from mosaics_jax.nn.persistent import PersistentMemory

HERE = pathlib.Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())
EXACT = 1e-9
HEADS = 4


def block_of(name, dtype, width):
    config = MosaicConfig(n_head=HEADS, n_embd=width, pmem_size=40, dtype=dtype)
    if "incontext" in name:
        return ContextualMemory(config)
    return PersistentMemory(dataclasses.replace(config, pmem_count=MANIFEST[name]["pmem_count"]))


def ours(arrays, prefix):
    """The recorded arrays whose names begin with ``prefix`` (parameters or gradients), as a tree of our parameters."""
    part = {name.removeprefix(prefix): jnp.asarray(a) for name, a in arrays.items() if name.startswith(prefix)}
    tree = {
        "key": {
            "W_phi": {"kernel": part["k_featurizer.conv.weight"][:, :, 0].T},
            "decay": part["leaky_key_beta"],
            "bandwidth": part["kernel_beta"],
        },
        "W_z": {"kernel": part["c_proj.weight"].T},
    }
    if "v_featurizer.coef" in part:
        value = {"W_psi": {"kernel": part["v_featurizer.linear.weight"].T}, "peek": part["v_featurizer.coef"]}
        return tree | {"value": value | {"gain": part["value_beta"]}}
    banks = sum(name.startswith("pmem.M_k") for name in part)
    slots = {f"P_{x}": jnp.concatenate([part[f"pmem.M_{x}{n}"] for n in range(banks)]) for x in "kv"}
    return tree | slots | {"gain": part["value_beta"]}


def run(name, dtype):
    arrays = dict(np.load(HERE / f"{name}.npz"))
    block = block_of(name, dtype, arrays["x"].shape[-1])
    params = jax.tree.map(lambda a: a.astype(dtype), ours(arrays, "param/"))

    def is_intermediate(module, method):
        # The outputs of all projections, and the values.
        return (isinstance(module, Projection) and method == "__call__") or method == "value"

    @jax.jit
    def forward_and_back(params, x, cotangent):
        def forward(params, x):
            variables = {"params": params}
            y, captured = block.apply(variables, x, capture_intermediates=is_intermediate, mutable=["intermediates"])
            return y, captured["intermediates"]

        y, pull, captured = jax.vjp(forward, params, x, has_aux=True)
        return y, captured, pull(cotangent)

    y, captured, gradients = forward_and_back(params, arrays["x"].astype(dtype), arrays["gy"].astype(dtype))
    return arrays, params, y, captured, gradients


BLOCKS = [name for name in MANIFEST if name.startswith("blk_")]


@pytest.mark.parametrize("name", BLOCKS)
def test_float64(x64, relative_error, name):
    arrays, params, y, captured, (dparams, dx) = run(name, "float64")
    assert relative_error(y, arrays["y_f64"]) < EXACT
    assert relative_error(dx, arrays["gx_f64"]) < EXACT
    errors = jax.tree.map(relative_error, dparams, ours(arrays, "grad_f64/"))
    assert max(jax.tree.leaves(errors)) < EXACT, errors

    def heads(x_BTC):
        return np.moveaxis(np.reshape(x_BTC, (*x_BTC.shape[:2], HEADS, -1)), 2, 1)

    raw = captured["key"]["W_phi"]["__call__"][0]
    assert relative_error(heads(raw), arrays["mid_f64/kraw"]) < EXACT
    merged = jnp.linalg.solve(params["W_z"]["kernel"].T, captured["W_z"]["__call__"][0][..., None])[..., 0]
    assert (
        relative_error(merged, arrays["mid_f64/merged"]) < 1e-7
    )  # solved for, so that the error grows with the condition number of W_z
    if "incontext" in name:
        values = np.moveaxis(captured["value"]["value"][0], 2, 1)
        gain = np.exp(10 * np.asarray(params["value"]["gain"]))[:, None, None]
        # The last value, which no query sees, is computed from a zero next input, as in the authors' code.
        assert relative_error(values / gain, arrays["mid_f64/vunit"]) < EXACT
        answers = np.einsum("bhtn,bhnd->bhtd", arrays["mid_f64/att"], np.asarray(values))
        assert relative_error(answers, heads(arrays["mid_f64/merged"])) < EXACT


@pytest.mark.parametrize("name", BLOCKS)
def test_float32(name):
    """The float32 error is at most 8 times the authors' (see `test_language_models.test_float32`)."""
    arrays, _, y, _, _ = run(name, "float32")
    error = np.max(np.abs(y - arrays["y_f64"]))
    assert error < 8 * MANIFEST[name]["f32_vs_f64"]
