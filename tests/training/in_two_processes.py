"""One of two processes, 2 virtual devices each, that train the tiny task together.

``in_two_processes.py PROCESS PORT DIRECTORY CACHE``; exits with 75 if a signal stops it. Leaves the parameters that it
restored and those that it ended with in ``restored.npz`` and ``final.npz``.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import tiny
from jax.experimental import multihost_utils

from mosaics_jax.training import Interrupted, train
from mosaics_jax.training import loop as training_loop
from mosaics_jax.training.checkpoints import restore_latest


def main(process, port, directory, cache):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    half = slice(8 * int(process), 8 * int(process) + 8)
    task = tiny.make_task(sample=tiny.slow_sample, evaluate=None)
    data = task.train_data.map(lambda batch: {name: rows[half] for name, rows in batch.items()})
    loop = dataclasses.replace(tiny.LOOP, mesh="data:2,tensor:2", sample_every=1, checkpoint_every=0)

    def note(name, params):
        whole = multihost_utils.process_allgather(params, tiled=True)
        if process == "0":
            np.savez(pathlib.Path(directory) / f"{name}.npz", **whole)

    def restore(*arguments):
        state = restore_latest(*arguments)
        if state is not None:
            note("restored", state.params)
        return state

    training_loop.restore_latest = restore
    try:
        result = train(directory, loop, tiny.OPTIMIZER, dataclasses.replace(task, train_data=data))
        note("final", result.params)
    except Interrupted:
        return Interrupted.EXIT_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
