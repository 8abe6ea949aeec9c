"""Reasons for a run to end before its last step: a signal, or numbers that are no longer finite."""

import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mosaics_jax.errors import UserError

SAVE = "save"  # what ``StopSignals.seen`` may say besides the name of a signal


class Diverged(UserError):
    """A metric is NaN or infinite."""


class Interrupted(Exception):
    """The run was told to stop, and has saved its state; the same command goes on from there."""

    EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class StopSignals:
    """Within ``with StopSignals() as signals``, SIGTERM and SIGINT are noted; a second one ends the process at once.

    Schedulers send SIGTERM before they take a machine away, and Cloud TPU before it maintains one (Autocheckpoint).
    With several processes a signal to any of them stops all. Only the main thread can take signals: in another, this
    process notes none. One that nobody asked for is passed on at the end to whoever took signals before.

    JAX's preemption service (``multihost_utils.reached_preemption_sync_point``) is not used, and ``experiments.entry``
    turns it off: its handler, which Python can neither call nor put back, swallows every SIGTERM until the process
    ends, the second one and those outside of training too, and knows no SIGINT.
    """

    received = 0  # the first signal's number
    _told = False
    _agreed: jax.Array | None = None

    def __enter__(self) -> "StopSignals":
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A handler in Python runs when the compilation or the step at hand returns. The thread hears at once.
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
            self._listener.start()
            numbers = (signal.SIGTERM, signal.SIGINT)
            self._previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None is a handler that Python cannot put back
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._writer)
            self._listener.join()
        if self.received and not self._told and error is None:
            signal.raise_signal(self.received)

    def _listen(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if byte[0] not in (signal.SIGTERM, signal.SIGINT):
                    continue
                if self.received:
                    os._exit(128 + byte[0])
                self.received = byte[0]

    def seen(self, save: bool = False) -> str | None:
        """The signal that asks the run to stop, if any, or SAVE where a process wishes to ``save``.

        To be called once after every step, under the mesh. The same answer in all processes: with several, what they
        had agreed upon by the time of the call before.
        """
        number = self.received or int(save)
        if jax.process_count() > 1:
            agreed, self._agreed = self._agreed, largest_of_all_processes(number)
            number = 0 if agreed is None else int(agreed)
            if number:
                self._agreed = None  # in which the wish would be heard again
        return self._name(number)

    def last(self) -> str | None:
        """As ``seen``, but of this very call: waits for all processes. For the end of a run."""
        return self._name(int(largest_of_all_processes(self.received)) if jax.process_count() > 1 else self.received)

    def _name(self, number: int) -> str | None:
        self._told = number > 1
        return (SAVE if number == 1 else signal.Signals(number).name) if number else None


def largest_of_all_processes(number: int) -> jax.Array:
    """() int32, in the making: the devices compute it after all that was dispatched before."""
    mesh = jax.sharding.get_mesh()
    mine = np.full(jax.local_device_count(), number, np.int32)
    return _largest(jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(mesh.axis_names)), mine))


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(numbers), PartitionSpec())
