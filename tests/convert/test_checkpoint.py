"""Checkpoints of the authors' codes, as dicts of arrays: what is recognised, what comes back, what is refused."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mosaics_jax.convert import from_torch, to_torch
from mosaics_jax.errors import UserError
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig, stack_layers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def state_dict_of(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key.removeprefix("param/"): file[key] for key in file if key.startswith("param/")}


SIZES = {"vocab_size": 97, "n_layer": 3, "n_head": 4, "n_embd": 32}
MOSAIC, GPT = MosaicConfig(pmem_size=40, **SIZES), GPT2Config(context_length=48, gelu="erf", **SIZES)
CONFIGS = {
    "lib_base": MOSAIC,
    "lib_pmem2": dataclasses.replace(MOSAIC, pmem_count=2),
    "lib_attnonly": dataclasses.replace(MOSAIC, attn_only=True, pmem_size=MosaicConfig().pmem_size),
    "lib_untied_skip5": dataclasses.replace(MOSAIC, weight_tying=False),
    "lib_bias": dataclasses.replace(MOSAIC, bias=True),
    "lib_convfe": dataclasses.replace(MOSAIC, value_convolution=True, key_taps=3),
    "nano_mosaic": dataclasses.replace(MOSAIC, variant="nano"),
    "nano_mosaic_pmem2_bias": dataclasses.replace(MOSAIC, variant="nano", pmem_count=2, bias=True),
    "nano_gpt": GPT,
    "nano_gpt_bias": dataclasses.replace(GPT, bias=True),
}


def assert_bits_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (array.shape, np.float32)
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    """The config is recognised, the parameters have the shapes of its model, and converting back gives every bit."""
    state_dict = state_dict_of(name)
    config, params = from_torch(state_dict, n_head=4)
    assert config == CONFIGS[name]
    model = (GPT2 if isinstance(config, GPT2Config) else MemoryMosaic)(config)
    expected = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    expected = jax.tree.map(
        lambda box: (box.value.shape, box.value.dtype), expected, is_leaf=lambda x: hasattr(x, "names")
    )
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == expected
    assert_bits_equal(to_torch(config, params), state_dict)
    assert_bits_equal(to_torch(dataclasses.replace(config, scan_layers=True), stack_layers(params)), state_dict)


def test_options_that_leave_no_trace():
    assert not from_torch(state_dict_of("lib_base"), pre_ln=False)[0].pre_ln
    config, _ = from_torch(state_dict_of("nano_gpt"), n_head=8, gelu="tanh")
    assert (config.n_head, config.gelu) == (8, "tanh")
    wide = {
        name: np.zeros(np.array(a.shape) * np.where(np.isin(a.shape, (32, 96, 128)), 4, 1))
        for name, a in state_dict_of("nano_gpt").items()
    }
    assert from_torch(wide)[0].n_head == 2


def test_wrappers_buffers_and_types():
    """What torch.compile, DistributedDataParallel, nanoGPT's trainer and mixed precision make of a state dict."""
    plain = state_dict_of("nano_mosaic")
    wrapped = {f"module._orig_mod.{name}": a for name, a in plain.items()}
    wrapped["_orig_mod.mosaic.h.0.attn.bias"] = np.ones((1, 1, 48, 48), bool)
    wrapped["module.mosaic.h.0.mlp.k_featurizer.leaky_avg.coef"] = np.ones((48, 48), np.float32)
    config, params = from_torch({"model": wrapped, "iter_num": 80000})
    assert_bits_equal(to_torch(config, params), plain)
    half = {name: a.astype(ml_dtypes.bfloat16) for name, a in plain.items()}
    config, params = from_torch(half)
    assert_bits_equal(to_torch(config, params), {name: a.astype(np.float32) for name, a in half.items()})


def test_the_names_of_librarys_cuda_version():
    """The version of the published runs: the leaky average has a module of its own, and its decay two names."""
    plain = state_dict_of("lib_base")
    renamed = {}
    for name, array in plain.items():
        if name.endswith(".k_featurizer.conv.weight"):
            renamed[name.replace("k_featurizer.conv", "leaky_average.linear")] = array[:, :, 0]
        elif name.endswith(".leaky_key_beta"):
            for x in "wu":
                renamed[name.replace("leaky_key_beta", f"leaky_average.leaky_beta_{x}_under")] = array
        else:
            renamed[name] = array
    config, params = from_torch(renamed)
    assert config == MOSAIC
    assert_bits_equal(to_torch(config, params), plain)
    renamed["blocks.1.attn.leaky_average.leaky_beta_u_under"] = np.zeros(4, np.float32)
    with pytest.raises(UserError, match=r"leaky_beta_w_under and .*leaky_beta_u_under differ"):
        from_torch(renamed)


def test_parameters_share_no_memory_with_the_checkpoint():
    state_dict = state_dict_of("lib_base")
    _, params = from_torch(state_dict)
    state_dict["ln_out.weight"][:] = 7
    assert not np.any(params["ln_out"]["scale"] == 7)


def without(name):
    return lambda state_dict: state_dict.pop(name)


def without_all(*beginnings):
    return lambda state_dict: [state_dict.pop(name) for name in list(state_dict) if name.startswith(beginnings)]


def with_array(name, array):
    return lambda state_dict: state_dict.update({name: array})


REFUSED = [
    ("lib_base", lambda d: d.clear(), "it holds nothing"),
    ("lib_base", without_all("emb", "blocks.0", "blocks.2", "ln_out", "head"), "it holds blocks.1.ln1.weight, .* more"),
    ("lib_base", without("head.weight"), "missing: head.weight"),
    ("lib_base", without("blocks.0.attn.kernel_beta"), "lacks blocks.0.attn.kernel_beta"),
    ("lib_base", without("blocks.2.pmem.c_proj.weight"), "missing: blocks.2.pmem.c_proj.weight"),
    ("lib_base", with_array("blocks.1.more", np.zeros(2)), "unknown: blocks.1.more"),
    ("lib_base", with_array("blocks.0.ln2.bias", np.zeros(32)), "unknown: blocks.0.ln2.bias"),
    ("lib_base", with_array("ln_out.weight", np.zeros(31)), r"shape: ln_out.weight \(31,\), expected \(32,\)"),
    ("lib_base", with_array("emb.weight", np.zeros(5)), r"emb.weight of the checkpoint has shape \(5,\)"),
    ("lib_base", with_array("ln_out.weight", np.zeros(32, int)), "ln_out.weight of the checkpoint is of type int64"),
    ("lib_base", with_array("blocks.0.attn.kernel_beta", np.zeros(5)), "n_embd=32 is not divisible by n_head=5"),
    ("lib_base", without_all("blocks.1"), "missing: blocks.1.ln1.weight, .* more; unknown: blocks.2"),
    ("nano_mosaic", without("mosaic.h.0.mlp.P_k"), "lacks mosaic.h.0.mlp.P_k"),
    ("nano_gpt", lambda d: None, "width 32 is no multiple of 64: give n_head"),
]  # fmt: skip


@pytest.mark.parametrize("name, spoil, message", REFUSED)
def test_refusals_name_what_is_wrong(name, spoil, message):
    state_dict = state_dict_of(name)
    spoil(state_dict)
    with pytest.raises(UserError, match=message) as error:
        from_torch(state_dict)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_what_cannot_be_written():
    config, params = from_torch(state_dict_of("lib_base"))
    for fields, message in (
        ({"feed_forward": True}, "feed_forward"),
        ({"variant": "nano", "key_taps": 3}, "nanoMosaics has no"),
        ({"n_layer": 4}, "missing: blocks_3/"),
        ({"weight_tying": False}, "missing: head"),
        ({"pmem_count": 2}, r"of another shape: blocks_0/persistent/P_k"),
        ({"vocab_size": 98}, r"of another shape: embedding \(97, 32\), expected \(98, 32\)"),
    ):
        with pytest.raises(UserError, match=message):
            to_torch(dataclasses.replace(config, **fields), params)
    with pytest.raises(UserError, match="unknown: extra"):
        to_torch(config, params | {"extra": np.zeros(1)})


def test_rotary_positions_are_refused():
    with pytest.raises(UserError, match="no rotary positions"):
        to_torch(GPT2Config(rotary=True), {})
