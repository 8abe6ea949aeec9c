"""What the fault campaign inspects, and what it damages."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mosaics_jax.training import load_params
from mosaics_jax.training.checkpoint_files import damage, steps_in
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.tensorboard import Points, read_points

STEPS = 300
TRAIN = [
    "--flagfile=experiments/flags/smoke.flags",
    "--model=mosaic",
    f"--steps={STEPS}",
    "--checkpoint_every=15",
    "--eval_every=60",
    "--eval_tokens=512",
    "--samples=0",
    "--log_every=10",
]
ROOT = pathlib.Path(__file__).parents[1]


def train_command(workdir: pathlib.Path, run: pathlib.Path) -> list[str]:
    """The command that trains in ``run`` on the tokens in ``workdir``."""
    tokens = [f"--train_files={workdir / 'train'}", f"--eval_files={workdir / 'valid'}"]
    return [sys.executable, "-m", "experiments.babistories", *TRAIN, *tokens, f"--workdir={run}"]


def prepare_command(text: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    """The command that tokenizes ``text`` into ``out``."""
    return [sys.executable, "-m", "experiments.prepare_text", f"--input={text}", f"--out={out}", "--workers=2", *more]


def newest(run: pathlib.Path) -> int:
    """Step of the newest whole checkpoint; 0 if there is none."""
    checkpoints = run / "mosaic" / "checkpoints"
    return next((step for step in steps_in(checkpoints) if not damage(checkpoints / str(step))), 0)


def half_written(run: pathlib.Path) -> bool:
    """Whether a checkpoint has been begun and not finished."""
    return any((run / "mosaic").glob("*/*.orbax-checkpoint-tmp*"))


def bits(params: Any) -> list[tuple[str, bytes]]:
    """Names and contents of a tree of arrays."""
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in jax.tree.leaves_with_path(params)
    ]


def output_faults(output: str, before: int, status: int, expected: int) -> list[str]:
    """What is wrong with the output and exit status of a command that resumes a run at step ``before``."""
    wrong = [] if status == expected else [f"exit status {status} instead of {expected}: {output[-300:]}"]
    if "Traceback" in output:
        wrong.append(f"a traceback: {output[-1000:]}")
    if "devices: " in output and before and f"restored step {before} of " not in output:
        wrong.append(f"step {before} was not restored")
    return wrong


def differences(run: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """What of the parameters, metrics and TensorBoard points of two work directories is not equal, bit for bit."""
    wrong = []
    for which in ("newest", "best"):
        new, old = (load_params(directory / "mosaic", which) for directory in (run, reference))
        if bits(new) != bits(old):
            wrong.append(f"the {which} parameters differ")

    def recorded(directory: pathlib.Path) -> list[dict[str, Any]]:
        kept = [record for record in read_metrics(directory / "mosaic") if record["kind"] != "time"]
        return [{k: v for k, v in record.items() if k not in ("time", "seconds")} for record in kept]

    if recorded(run) != recorded(reference):
        wrong.append("the records of metrics.jsonl differ")

    def shown(directory: pathlib.Path) -> Points:
        points = read_points(directory / "mosaic" / "tensorboard")
        return {tag: line for tag, line in points.items() if not tag.endswith("/seconds")}

    if shown(run) != shown(reference):
        wrong.append("TensorBoard's points differ")
    if half_written(run):
        wrong.append("a half-written checkpoint is left")
    return wrong


def records_reach(run: pathlib.Path, step: int) -> bool:
    """Whether metrics.jsonl has the steps 1 to ``step`` once each, in order."""
    steps = [record["step"] for record in read_metrics(run) if record["kind"] == "train"]
    return steps[:step] == list(range(1, step + 1)) and len(set(steps)) == len(steps)


def wait(process: subprocess.Popen, seconds: float) -> None:
    """Waits until the process ends, at most so long."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill_group(process: subprocess.Popen) -> None:
    """Kills the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_one_of_two(process: subprocess.Popen, number: int) -> None:
    """Kills one of the two processes that ``process`` has started, unless one has ended already."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if len(children) == 2:
            os.kill(int(children[number]), signal.SIGKILL)


def ends_within(group: int, seconds: float) -> bool:
    """Whether the last process of a group ends in so many seconds."""
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
    "the position in the data missing": lambda step: shutil.rmtree(step / "data"),
    "a bit of the config": lambda step: _flip(step / "meta" / "metadata"),
    "list of files missing": lambda step: (step / "files.json").unlink(),
    "list of files cut short": lambda step: os.truncate(step / "files.json", 100),
    "all files missing": _empty,
}
