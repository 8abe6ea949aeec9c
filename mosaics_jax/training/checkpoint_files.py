"""The files of a checkpoint: whether they are what was written, and what is done with those that are not."""

import json
import os
import pathlib
import re
import shutil
import zlib

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

FILE_LIST = "files.json"
ITEMS = ("params", "optimizer", "data", "meta", "metrics")


def measure(directory: pathlib.Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of the items of a checkpoint."""
    files = sorted(path for item in ITEMS for path in (directory / item).rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): [path.stat().st_size, _checksum(path)] for path in files}


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def damage(directory: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is."""
    try:
        expected = json.loads((directory / FILE_LIST).read_text())
        for name, (size, checksum) in expected.items():
            path = directory / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} of {size} bytes"
            if _checksum(path) != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{FILE_LIST} is missing"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{FILE_LIST}: {gist(error)}"
    return ""


def damage_seen_by_first_process(directory: pathlib.Path) -> str:
    """``damage``, judged by one process for all, so that all restore the same step."""
    if jax.process_count() == 1:
        return damage(directory)
    reason = damage(directory) if jax.process_index() == 0 else ""
    damaged = multihost_utils.broadcast_one_to_all(np.int32(bool(reason)))
    return reason or ("found damaged by the first process" if damaged else "")


def report_damage(directory: pathlib.Path, reason: str) -> None:
    logging.warning("checkpoint %s is damaged (%s): passed over", directory, reason)


def steps_in(directory: pathlib.Path) -> list[int]:
    """Steps of which there is a directory under its final name, newest first."""
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def set_aside(directories: list[pathlib.Path], destination: pathlib.Path) -> None:
    """Makes room for the steps to be saved again, yet destroys nothing that was damaged for the first time."""
    for directory in directories:
        shutil.rmtree(destination / directory.name, ignore_errors=True)
        destination.mkdir(parents=True, exist_ok=True)
        os.replace(directory, destination / directory.name)


def gist(error: BaseException) -> str:
    """The end of the first line of a library's error, where TensorStore tells the cause."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r" \[(os_error_code|source locations).*", "", line)
    return line if len(line) < 200 else f"... {line[-200:]}"
