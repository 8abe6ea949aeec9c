"""A program that compares retrieval on 8 virtual devices, with time sharded, and on one: all reaches, all gradients.

A program of its own, because JAX fixes the number of devices when it starts.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.ops import Reach, RetrievalForm, blockwise, causal_retrieval
from mosaics_jax.training.mesh import make_mesh

BATCH, TIME = 4, 128


def main():
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    blockwise.BLOCK = 16
    args = [np.random.default_rng(seed).standard_normal((BATCH, TIME, 2, 4)) for seed in range(3)]
    documents_BT = np.stack([np.zeros(TIME), np.arange(TIME) // 50, np.arange(TIME) // 3, np.arange(TIME)]).astype(
        np.int32
    )

    def run(no_window, several, rate, delay, window, documents_BT, args):
        reach = Reach(delay, None if no_window else window, documents_BT if several else None)
        form = functools.partial(
            causal_retrieval,
            reach=reach,
            form=RetrievalForm.BLOCKWISE,
            dropout_rate=rate,
            dropout_seed=jnp.uint32(3),
        )
        out, pull = jax.vjp(form, *args)
        return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    expected = {}
    on_one_device = jax.jit(run, static_argnums=(0, 1, 2))
    combinations = list(itertools.product((0, 1, 5, TIME), (None, 1, 7, TIME), (False, True), (0.0, 0.3)))
    for delay, window, several, rate in combinations:
        result = on_one_device(window is None, several, rate, delay, window or 0, documents_BT, args)
        expected[delay, window, several, rate] = jax.device_get(result)
    for text in ("sequence:8", "data:2,sequence:2,tensor:2"):
        with jax.set_mesh(make_mesh(text)):
            on_mesh = jax.jit(run, static_argnums=(0, 1, 2))
            for delay, window, several, rate in combinations:
                results = on_mesh(window is None, several, rate, delay, window or 0, documents_BT, args)
                for ours, theirs in zip(jax.device_get(results), expected[delay, window, several, rate], strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
        with jax.set_mesh(make_mesh(text)):
            # A window that is known when compiling: pairs that nobody sees are skipped, on every shard.
            windowed = jax.jit(lambda args: run_static(Reach(5, 7), args))
            for ours, theirs in zip(windowed(args), expected[5, 7, False, 0.0], strict=True):
                np.testing.assert_allclose(jax.device_get(ours), theirs, rtol=1e-11, atol=1e-12)
            largest = weights_of(windowed.lower(args).as_text())
            assert largest <= 16 * 32, largest
    print("all equal")


def run_static(reach, args):
    out, pull = jax.vjp(functools.partial(causal_retrieval, reach=reach, form=RetrievalForm.BLOCKWISE), *args)
    return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))


def weights_of(text):
    """The most weights of a block of 16 queries that a program of one head and sequence at a time has arrays of."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in re.findall(r"tensor<((?:\d+x)*\d+)xf64>", text)]
    return max(shape[-2] * shape[-1] for shape in shapes if len(shape) >= 2 and shape[-2] == 16)


if __name__ == "__main__":
    main()
