"""Generates from parameters that are spread over 8 devices, inside the training loop's mesh; run as a program."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaics_jax.inference import generate
from mosaics_jax.models import MemoryMosaic, MosaicConfig
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

        params = jax.jit(lambda: nn.meta.unbox(init()), out_shardings=shardings_of(jax.eval_shape(init), mesh))()
        assert len(params["embedding"].sharding.device_set) == 8
        spread = generate(model, params, PROMPTS, max_tokens=12)
    assert spread == generate(model, jax.device_get(params), PROMPTS, max_tokens=12)
    assert [len(row) for row in spread] == [12, 12]
    print("equal")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    main()
