"""One of two processes, 2 virtual devices each, that train the tiny task together.

``in_two_processes.py PROCESS PORT DIRECTORY CACHE``; exits with 75 if a signal stops it.
"""

import dataclasses
import sys

import jax
import tiny

from mosaics_jax.training import Interrupted, train


def main(process, port, directory, cache):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    half = slice(8 * int(process), 8 * int(process) + 8)
    task = tiny.make_task(sample=tiny.slow_sample, evaluate=None)
    data = task.train_data.map(lambda batch: {name: rows[half] for name, rows in batch.items()})
    loop = dataclasses.replace(tiny.LOOP, mesh="data:2,tensor:2", sample_every=1, checkpoint_every=0)
    try:
        train(directory, loop, tiny.OPTIMIZER, dataclasses.replace(task, train_data=data))
    except Interrupted:
        return Interrupted.EXIT_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
