"""Metrics of a run: ``metrics.jsonl``, without gap or double however often the run was restarted, and TensorBoard."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax

from mosaics_jax.errors import UserError

# tensorboardX imports PyTorch wherever it is installed, for what is not used here: seconds, and 700 MiB of memory.
_torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # None: not to be found
try:
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
finally:
    if _torch is None:
        del sys.modules["torch"]

FILE_NAME = "metrics.jsonl"
BOARD_SECONDS = 30  # that a point may take to be seen in TensorBoard
RECORD_FIELDS = ("step", "kind", "time")  # of every record; its other fields are values


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` (or of the one in a work directory), oldest first; none if there is no file.

    A record holds ``step`` (updates made), ``kind``, ``time`` (seconds since 1970) and values. Kinds: ``train``, one
    for every step (loss, grad_norm, learning_rate, seconds it took); ``skipped``, instead of it for a step that was
    skipped (loss and grad_norm if they are finite, skipped: steps so far); ``eval``; ``sample`` (text); ``time``
    (seconds that an evaluation, a sample or a checkpoint took). A half-written last line is left out.
    """
    path = pathlib.Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            record["step"], record["kind"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not a metrics record; mend or move the file") from None
        records.append(record)
    return records


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and ``tensorboard/`` in a work directory.

    Records after ``resume_step`` are removed first: the steps they tell of are about to be made again.
    Only the first process writes. Raises UserError where it cannot.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int = 0):
        self._path = workdir / FILE_NAME
        self._file = None
        if jax.process_index() > 0:
            return
        records = read_metrics(self._path)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            replace_records(self._path, (record for record in records if record["step"] <= resume_step))
            # One write a line, so that a killed run leaves at most its last line unfinished.
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._board = Board(workdir / "tensorboard", resume_step, bool(records))
        except OSError as error:
            raise UserError(f"cannot write metrics in {workdir}: {error.strerror}") from error

    def write(self, step: int, kind: str, values: dict[str, Any], board: bool = True) -> None:
        """Adds one record; ``board``: to TensorBoard too, numbers as ``kind/name``, text as text."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, "kind": kind, "time": time.time(), **values}) + "\n")
            for name, value in values.items() if board else ():
                self._board.add(step, f"{kind}/{name}", value)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def flush(self) -> None:
        """Puts all records on the disk: to be called before a checkpoint claims that its steps are done."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was told before
                self._file.close()
            with contextlib.suppress(OSError):
                self._board.close()


class Board:
    """A file of points for TensorBoard, written here and now.

    tensorboardX's own SummaryWriter has a thread between, whose points are not on the disk after a ``flush``, and which
    dies of a full disk and leaves the run waiting for it.
    """

    def __init__(self, directory: pathlib.Path, resume_step: int, resumed: bool):
        directory.mkdir(exist_ok=True)
        # The rest of the file's name is the time, in whole seconds.
        self._events = EventsWriter(str(directory / "events"), f".{resume_step}")
        self._flushed = time.monotonic()
        if resumed:  # TensorBoard forgets the points of this and later steps in the files before
            forget = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=forget))

    def add(self, step: int, tag: str, value: float | str) -> None:
        made = summary.text(tag, value) if isinstance(value, str) else summary.scalar(tag, value)
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=made))
        if time.monotonic() > self._flushed + BOARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._events.close()


def replace_records(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
    """Rewrites a ``metrics.jsonl`` in one stroke."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(scratch, path)
