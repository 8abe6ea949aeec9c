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

SAVE = "save"  # the request of `StopSignals` that is no signal: a process wants a checkpoint


class Diverged(UserError):
    """A metric is NaN or infinite."""


class Interrupted(Exception):
    """A signal stopped the run, and its state is saved; the same command resumes it."""

    EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class StopSignals:
    """Within ``with StopSignals() as signals``, SIGTERM and SIGINT are recorded; a second one kills the process.

    Schedulers send SIGTERM before they take a machine away, and Cloud TPU before it maintains one (Autocheckpoint).
    With several processes, a signal to any process stops all. Only the main thread can install signal handlers; in
    another thread, this process records no signals. A signal that no caller asked about is raised again at the exit,
    for the handler that was installed before.

    JAX's preemption service (``multihost_utils.reached_preemption_sync_point``) is not used, and `Processes.join` turns
    it off. Its handler, which Python can neither call nor restore, swallows every SIGTERM until the process ends (also
    the second one, and those outside of training), and does not know SIGINT.
    """

    received = 0  # number of the first signal; 0: none yet
    _reported = False
    _pending: jax.Array | None = None  # the request that the last call of ``requested`` sent to the other processes

    def __enter__(self) -> "StopSignals":
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # A handler written in Python runs only when the current compilation or step returns. A thread that reads
            # the wake-up file descriptor learns of the signal at once.
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
                signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that Python cannot restore
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._writer)
            self._listener.join()
        if self.received and not self._reported and error is None:
            signal.raise_signal(self.received)

    def _listen(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if byte[0] not in (signal.SIGTERM, signal.SIGINT):
                    continue
                if self.received:
                    os._exit(128 + byte[0])
                self.received = byte[0]

    def requested(self, save: bool = False) -> str | None:
        """The name of the signal that stops the run, SAVE if a process passed ``save=True``, or None.

        Call it once after every step, under the mesh. All processes get the same answer. With several processes, the
        answer is the request that they had made by the previous call, so that no step waits for communication.
        """
        number = self.received or int(save)
        if jax.process_count() > 1:
            agreed, self._pending = self._pending, largest_of_all_processes(number)
            number = 0 if agreed is None else int(agreed)
            if number:
                self._pending = None  # it repeats the request that is being answered now
        return self._name(number)

    def requested_now(self) -> str | None:
        """As ``requested``, but waits for all processes. For the end of a run."""
        return self._name(int(largest_of_all_processes(self.received)) if jax.process_count() > 1 else self.received)

    def _name(self, number: int) -> str | None:
        self._reported = number > 1
        return (SAVE if number == 1 else signal.Signals(number).name) if number else None


def largest_of_all_processes(number: int) -> jax.Array:
    """The largest ``number`` of any process: () int32, dispatched to the devices behind the current step."""
    mesh = jax.sharding.get_mesh()
    mine = np.full(jax.local_device_count(), number, np.int32)
    return _largest(jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(mesh.axis_names)), mine))


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.max(numbers), PartitionSpec())
