"""Generates from parameters that are sharded over 8 devices, in memory and as opened from a run; run as a program."""

import dataclasses
import sys
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.inference import generate
from mosaics_jax.models import MemoryMosaic, MosaicConfig
from mosaics_jax.training import open_run
from mosaics_jax.training.checkpoints import save_params
from mosaics_jax.training.mesh import make_mesh, shardings_of

PROMPTS = [[1, 2, 3], [4]]


def main() -> None:
    model = MemoryMosaic(
        MosaicConfig(vocab_size=24, n_layer=2, n_head=2, n_embd=16, pmem_size=8, scan_layers=True, dtype="bfloat16")
    )
    mesh = make_mesh("data:2,fsdp:2,tensor:2")
    with jax.set_mesh(mesh):

        def init():
            return model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]

        shardings = shardings_of(jax.eval_shape(init), mesh)
        params = jax.jit(lambda: nn.meta.unbox(init()), out_shardings=shardings)()
        assert len(params["embedding"].sharding.device_set) == 8
        sharded = generate(model, params, PROMPTS, max_tokens=12)
    assert sharded == generate(model, jax.device_get(params), PROMPTS, max_tokens=12)
    assert [len(row) for row in sharded] == [12, 12]

    config = {"task": {"model": {"name": "mosaic", **dataclasses.asdict(model.config)}, "data": {}}}
    with tempfile.TemporaryDirectory() as directory:
        save_params(Path(directory), params, config)
        whole, opened = open_run(directory), open_run(directory, mesh=mesh)
        assert jax.tree.map(lambda leaf: leaf.sharding, opened.params) == shardings
        assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(whole.params))
        jax.tree.map(np.testing.assert_array_equal, opened.params, params)
        jax.tree.map(np.testing.assert_array_equal, whole.params, params)
        for run in (whole, opened):
            assert generate(run.model, run.params, PROMPTS, max_tokens=12) == sharded
    print("equal")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    main()
