"""Losses and gradients of language models under every mesh of 8 virtual devices, beside those of one device.

In float64, where they must agree to 1e-12: in float32, rounding alone comes near 1e-5, over it on some processors.

A program of its own, as the number of devices is fixed when JAX starts: ``on_eight_devices.py CACHE [all]``. Prints a
line for each model and mesh; the test takes a part of them for the baseline, ``all`` takes all.
"""

import math
import os
import re
import sys

import flax.linen as nn
import jax
import numpy as np
import optax

from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig
from mosaics_jax.ops import blockwise
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.training.mesh import make_mesh, put_batch
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import Task, make_trainer

SIZES = {"dtype": "float64", "vocab_size": 48, "n_layer": 2, "n_head": 8, "n_embd": 32, "scan_layers": True}
MOSAIC = {**SIZES, "pmem_size": 24, "ic_dropout": 0.1, "hd_dropout": 0.1}
MODELS = {
    "library": MemoryMosaic(MosaicConfig(**MOSAIC)),
    "nano": MemoryMosaic(MosaicConfig(**MOSAIC, variant="nano", value_convolution=True, remat="dots")),
    "gpt2": GPT2(GPT2Config(**SIZES, context_length=80, dropout=0.1, remat="dots")),
}
AXES = ("data:8", "fsdp:8", "tensor:8", "sequence:8")
TOGETHER = ("data:2,fsdp:2,tensor:2", "data:2,sequence:4", "fsdp:2,tensor:2,sequence:2")
MESHES = {"library": (*AXES, *TOGETHER), "nano": TOGETHER[-1:], "gpt2": (AXES[-1], TOGETHER[-1])}
ROWS, TIME = 16, 72
STEP = 0.01


def data():
    tokens = np.random.default_rng(5).integers(0, 48, (ROWS, TIME + 1), dtype=np.int32)
    targets = np.where(np.arange(TIME) % 9 == 4, -1, tokens[:, 1:])
    return {"inputs": tokens[:, :-1], "targets": targets.astype(np.int32)}


def two_steps(gradient, params, batch):
    """(loss, gradient) at the initial parameters, and where one step of plain descent leads."""
    first = gradient(params, batch, jax.random.key(1))
    params = jax.tree.map(lambda p, g: p - STEP * g, params, first[1])
    return jax.device_get((first, gradient(params, batch, jax.random.key(2))))


def compare(name, mesh_text, task, params, one_device):
    mesh = make_mesh(mesh_text)
    with jax.set_mesh(mesh):
        trainer = make_trainer(task, OptimizerConfig(), 10, 0, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, trainer.abstract.params)
        if name == "library" and mesh_text == TOGETHER[-1]:
            jax.tree.map(np.testing.assert_array_equal, born_split(trainer, mesh), params)
        batch = put_batch(data(), mesh)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch), data())
        gradient = jax.jit(loss_and_gradient(task), out_shardings=(None, shardings))
        params = jax.device_put(params, shardings)
        compiled = gradient.lower(params, batch, jax.random.key(1)).compile()
        found = two_steps(compiled, params, batch)
    errors = []
    for (loss, gradients), (true_loss, true_gradients) in zip(found, one_device, strict=True):
        np.testing.assert_allclose(loss, true_loss, rtol=1e-12)
        difference = jax.tree.map(np.subtract, gradients, true_gradients)
        errors.append(float(optax.tree.norm(difference) / optax.tree.norm(true_gradients)))
        for wrong, true in zip(jax.tree.leaves(difference), jax.tree.leaves(true_gradients), strict=True):
            assert np.linalg.norm(wrong) < 1e-10 * np.linalg.norm(true), (name, mesh_text, true.shape)
    assert max(errors) < 1e-12, (name, mesh_text, errors)
    if "sequence" in mesh_text:
        check_time_is_split(compiled.as_text())
    print(f"{name} {mesh_text}: gradients equal to {max(errors):.1e}", flush=True)


def loss_and_gradient(task):
    return jax.value_and_grad(lambda params, batch, key: task.loss(params, batch, key)[0])


def born_split(trainer, mesh):
    """Parameters of a new state, no more of which is on a device than its share."""
    state = trainer.init()
    for leaf in jax.tree.leaves(state):
        parts = math.prod(mesh.shape[axis] for axis in leaf.sharding.spec if axis)
        assert all(shard.data.size * parts == leaf.size for shard in leaf.addressable_shards)
    kernel = state.params["blocks"]["contextual"]["W_z"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16) and kernel.shape == (2, 32, 32)
    return jax.device_get(state.params)


def check_time_is_split(hlo):
    """The whole sequence exists as tokens, as one head's keys and values or a query's weights, and as nothing else."""
    width = SIZES["n_embd"]
    for dtype, shape in sorted(set(re.findall(r"\b([a-z]+\d+)\[([\d,]+)\]", hlo))):
        sizes = [int(size) for size in shape.split(",")]
        if TIME in sizes and width in sizes:
            raise AssertionError(f"{dtype}[{shape}] holds all positions")


def main(cache, which=""):
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    blockwise.BLOCK = 16
    for name, model in MODELS.items():
        init, loss = init_function(model, TIME), next_token_loss(model, z_loss=0.1 if name == "gpt2" else 0.0)
        task = Task(name=name, init=init, loss=loss, train_data=(), config={}, tokens_per_step=1)
        params = nn.meta.unbox(jax.jit(init)(jax.random.split(jax.random.key(0))[0]))
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
        one_device = two_steps(jax.jit(loss_and_gradient(task)), params, data())
        for mesh_text in (*AXES, *TOGETHER) if which == "all" else MESHES[name]:
            compare(name, mesh_text, task, params, one_device)


if __name__ == "__main__":
    # Quick to compile rather than quick to run.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    main(*sys.argv[1:])
