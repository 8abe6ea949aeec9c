"""Metrics of a run: ``metrics.jsonl``, which has each step once however often the run is resumed, and TensorBoard."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import jax

from mosaics_jax.errors import UserError
from mosaics_jax.training.tensorboard import EventFile

FILE_NAME = "metrics.jsonl"
BOARD_SECONDS = 30  # longest time until TensorBoard sees a point
RECORD_FIELDS = ("step", "kind", "time")  # in every record; all other fields are values


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl`` (or of the one in a work directory), oldest first; [] if there is no file.

    A record holds ``step`` (updates made), ``kind``, ``time`` (seconds since 1970) and values. The kinds:

    - ``train``: one record for every step, with loss, grad_norm, learning_rate and the seconds that the step took.
    - ``skipped``: replaces the ``train`` record of a step that was skipped: loss and grad_norm if they are finite,
      skipped (number of skipped steps so far).
    - ``eval``: metrics of an evaluation. ``sample``: a text.
    - ``time``: seconds that an evaluation, a sample or a checkpoint took.

    A half-written last line is ignored. Raises UserError for any other line that is no record.
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

    Records of steps after ``resume_step`` are removed first, because the run is about to repeat these steps. Only the
    first process writes. Raises UserError if a file cannot be written.
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
            # Line buffering: a killed run leaves at most its last line unfinished.
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._events = EventFile(workdir / "tensorboard", f"{resume_step}")
            self._events_flushed = time.monotonic()
            if records:
                self._events.drop_from(resume_step + 1)
        except OSError as error:
            raise UserError(f"cannot write metrics in {workdir}: {error.strerror}") from error

    def write(self, step: int, kind: str, values: dict[str, Any], board: bool = True) -> None:
        """Appends one record. With ``board``, TensorBoard gets its values under ``kind/name``, as scalars or text."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, "kind": kind, "time": time.time(), **values}) + "\n")
            for name, value in values.items() if board else ():
                self._events.add(step, f"{kind}/{name}", value)
            if time.monotonic() > self._events_flushed + BOARD_SECONDS:
                self._flush_events()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def flush(self) -> None:
        """Writes all records to the disk. Call it before a checkpoint claims that their steps are done."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._flush_events()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error

    def _flush_events(self) -> None:
        self._events.flush()
        self._events_flushed = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            for file in (self._file, self._events):
                with contextlib.suppress(OSError):  # a full disk, which ``write`` or ``flush`` reported
                    file.close()


def replace_records(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
    """Replaces a ``metrics.jsonl`` atomically."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    os.replace(scratch, path)
