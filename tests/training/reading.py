"""Opens a run and says how many bytes each part of it reads; run as a program: ``reading.py WARM_UP RUN``.

Prints two numbers: bytes read for the config and the model, and for the parameters. Those that Linux counts in
``rchar``: all that is read from files, whether from the disk or from the page cache.
"""

import pathlib
import sys

import jax

from mosaics_jax.training import load_config, open_run


def bytes_read() -> int:
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def main(warm_up: str, run: str) -> None:
    jax.block_until_ready(open_run(warm_up).params)  # imports, threads, JAX's backend
    start = bytes_read()
    load_config(run)
    opened = open_run(run)
    config = bytes_read()
    jax.block_until_ready(opened.params)
    jax.block_until_ready(opened.params)  # kept: not read again
    print(config - start, bytes_read() - config)


if __name__ == "__main__":
    main(*sys.argv[1:])
