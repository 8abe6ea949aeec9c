"""The files of a checkpoint: whether they are still what was written, and where damaged ones go."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Collection, Iterable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

FILE_LIST = "files.json"  # name -> [bytes, CRC-32] of each file of a checkpoint
ITEMS = ("params", "optimizer", "data", "meta", "metrics")
BLOCK = 1 << 24  # bytes read at a time
THREADS = min(8, os.cpu_count() or 1)  # zlib and read() release Python's lock


def measure(directory: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of the items of a checkpoint."""
    files = sorted(path for item in ITEMS for path in (directory / item).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def damage(directory: pathlib.Path, items: Collection[str] = ITEMS, process: int = 0, processes: int = 1) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is.

    All files must have the size that was written; those of ``items`` are also read, and must have the checksum. With
    several ``processes`` each reads its share of the bytes, and says what is wrong with that share.
    """
    try:
        expected = json.loads((directory / FILE_LIST).read_text())
        share = _share({name: size for name, (size, _) in expected.items()}, process, processes)

        def file_damage(name: str) -> str:
            path, (size, checksum) = directory / name, expected[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if name.split("/")[0] in items and _checksum(path) != checksum:
                return f"{name} is not what was written"
            return ""

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            return next(filter(None, pool.map(file_damage, share)), "")
    except FileNotFoundError:
        return f"{FILE_LIST} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{FILE_LIST}: {cause(error)}"


def _share(sizes: dict[str, int], process: int, processes: int) -> list[str]:
    """The files that one of several processes checks: the largest first, each given to the one with fewest bytes."""
    load = [0] * processes
    share = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        load[least] += sizes[name]
        if least == process:
            share.append(name)
    return sorted(share)


def damage_seen_by_any_process(directory: pathlib.Path, items: Collection[str] = ITEMS) -> str:
    """`damage`, where each process checks its share of the files, and all agree on whether there is any."""
    reason = damage(directory, items, jax.process_index(), jax.process_count())
    if jax.process_count() == 1:
        return reason
    damaged = np.flatnonzero(multihost_utils.process_allgather(np.int32(bool(reason))))
    return reason or (f"process {damaged[0]} found damage" if len(damaged) else "")


def report_damage(directory: pathlib.Path, reason: str) -> None:
    logging.warning("checkpoint %s is damaged (%s): passed over", directory, reason)


def steps_in(directory: pathlib.Path) -> list[int]:
    """The steps whose checkpoints are finished, that is have a directory under its final name; newest first."""
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def set_aside(checkpoints: Iterable[pathlib.Path], destination: pathlib.Path) -> None:
    """Moves damaged checkpoints to ``destination``, so that their steps can be saved again.

    A step that was damaged before replaces the one that lies there.
    """
    for directory in checkpoints:
        shutil.rmtree(destination / directory.name, ignore_errors=True)
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(directory, destination / directory.name)


def cause(error: BaseException) -> str:
    """The end of the first line of an error of Orbax or TensorStore, which names the cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r" \[(os_error_code|source locations).*", "", line)
    return line if len(line) < 200 else f"... {line[-200:]}"
