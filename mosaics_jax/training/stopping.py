"""Reasons for a run to end before its last step: a signal, or numbers that are no longer finite."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from mosaics_jax.errors import UserError


class Diverged(UserError):
    """A metric is NaN or infinite."""


class Interrupted(Exception):
    """The run was told to stop, and has saved its state; the same command goes on from there."""

    EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class StopSignals:
    """Within ``with StopSignals() as signals``, SIGTERM and SIGINT are noted; a second one ends the process at once.

    Only the main thread can take signals: in another, nothing is noted. With several processes, SIGTERM to any of them
    stops all, and SIGINT is left alone.
    """

    received: str | None = None

    def __enter__(self) -> "StopSignals":
        self._previous: dict[int, Any] = {}
        # With several processes SIGTERM is left to JAX, whose handler tells the other processes.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
        self.__exit__()

    def stop_after(self, step: int) -> str | None:
        """The signal that asks the run to end after ``step``, if any: the same answer in all processes."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self.received
