"""Trains the tiny task on 8 virtual devices into DIRECTORY/MESH, for each MESH given.

A program of its own, as the number of devices is fixed when JAX starts: ``on_eight_devices.py DIRECTORY CACHE MESH...``
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import tiny

from mosaics_jax.training import train


def main(directory, cache, *meshes):
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    for mesh in meshes:
        workdir = pathlib.Path(directory) / mesh
        loop = dataclasses.replace(tiny.LOOP, mesh=mesh, checkpoint_every=20, eval_every=0)
        result = train(workdir, loop, tiny.OPTIMIZER, tiny.make_task())
        np.savez(workdir / "final.npz", **jax.tree.map(np.asarray, result.params))


if __name__ == "__main__":
    main(*sys.argv[1:])
