"""What the fault campaign looks at, and what it spoils."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mosaics_jax.training.checkpoint_files import damage, steps_in
from mosaics_jax.training.metrics import read_metrics


def newest(run: pathlib.Path) -> int:
    """Step of the newest whole checkpoint; 0 if there is none."""
    checkpoints = run / "mosaic" / "checkpoints"
    return next((step for step in steps_in(checkpoints) if not damage(checkpoints / str(step))), 0)


def half_written(run: pathlib.Path) -> bool:
    return any((run / "mosaic").glob("*/*.orbax-checkpoint-tmp*"))


def bits(params: Any) -> list[tuple[str, bytes]]:
    """Names and contents of a tree of arrays."""
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in jax.tree.leaves_with_path(params)
    ]


def records_reach(run: pathlib.Path, step: int) -> bool:
    steps = [record["step"] for record in read_metrics(run) if record["kind"] == "train"]
    return steps[:step] == list(range(1, step + 1)) and len(set(steps)) == len(steps)


def wait(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_one_of_two(process: subprocess.Popen, number: int) -> None:
    """Kills one of the two processes that ``process`` has started, unless one has ended already."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if len(children) == 2:
            os.kill(int(children[number]), signal.SIGKILL)


def ends_within(group: int, seconds: float) -> bool:
    """Whether the last process of a group ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _largest(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(directory: pathlib.Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGE: dict[str, Callable[[pathlib.Path], object]] = {
    "parameters cut short": lambda step: os.truncate(path := _largest(step / "params"), path.stat().st_size - 20),
    "parameters empty": lambda step: os.truncate(_largest(step / "params"), 0),
    "a bit of the optimizer's state": lambda step: _flip(_largest(step / "optimizer")),
    "a file missing": lambda step: _largest(step / "optimizer").unlink(),
    "the place in the data missing": lambda step: shutil.rmtree(step / "data"),
    "a bit of the config": lambda step: _flip(step / "meta" / "metadata"),
    "list of files missing": lambda step: (step / "files.json").unlink(),
    "list of files cut short": lambda step: os.truncate(step / "files.json", 100),
    "all files missing": _empty,
}
