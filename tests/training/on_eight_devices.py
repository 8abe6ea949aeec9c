"""Trains the tiny task on 8 virtual devices into DIRECTORY/MESH, for each MESH given.

A program of its own, as the number of devices is fixed when JAX starts: ``on_eight_devices.py DIRECTORY CACHE MESH...``
"""

import dataclasses
import math
import pathlib
import sys

import jax
import numpy as np
import tiny
from jax.sharding import AxisType

from mosaics_jax.sharding import MESH_AXES
from mosaics_jax.training import train
from mosaics_jax.training.checkpoints import CheckpointWriter, restore_latest
from mosaics_jax.training.loop import run_config
from mosaics_jax.training.state import make_trainer


def main(directory, cache, *meshes):
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    for mesh in meshes:
        workdir = pathlib.Path(directory) / mesh
        loop = dataclasses.replace(tiny.LOOP, mesh=mesh, checkpoint_every=20, eval_every=0)
        result = train(workdir, loop, tiny.OPTIMIZER, tiny.make_task())
        np.savez(workdir / "final.npz", **jax.tree.map(np.asarray, result.params))
    pass_on(pathlib.Path(directory))


def pass_on(directory):
    """Restores on 4 devices what 8 devices saved, saves it there, and so on; state and data position stay equal."""
    task, source, first = tiny.make_task(), directory / "data:2,fsdp:2,tensor:-1", None
    config = run_config(tiny.LOOP, tiny.OPTIMIZER, task)
    for sizes in ((1, 8, 1, 1), (2, 1, 2, 1), (1, 1, 1, 1), (2, 2, 2, 1)):
        devices = jax.devices()[: math.prod(sizes)]
        mesh = jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)
        with jax.set_mesh(mesh):
            trainer = make_trainer(task, tiny.OPTIMIZER, tiny.LOOP.steps, tiny.LOOP.seed, mesh)
            data = iter(task.train_data)
            state = restore_latest(source, trainer.abstract, data, config)
            source = directory / f"on {len(devices)} after {source.name}"
            writer = CheckpointWriter(source, config, keep=1)
            writer.save(state, data)
            writer.close()
        assert state.params["hidden"].sharding.mesh.size == len(devices)
        bits = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], data.get_state()
        first = first or bits
        assert bits == first
    print("8 to 4 to 1 to 8: every bit is kept")


if __name__ == "__main__":
    main(*sys.argv[1:])
