"""How a program ends: every error that a user can mend is one line, and the exit status says what to do next.

Statuses: 0, done; USER_ERROR_STATUS, the command has to be changed; `Interrupted.EXIT_STATUS`, the state is saved and
the same command resumes; 130, Ctrl-C; BROKEN_PIPE_STATUS, nobody reads the output; 1, any other error.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.stopping import Interrupted

USER_ERROR_STATUS = 2
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE  # the status that a shell reports for a program that SIGPIPE ended
FLAGS_ERROR = "flags: "  # begins the message of every error in the flags themselves


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Parses the flags, calls ``main`` and ends the program with its status; a UserError becomes one line on stderr."""

    def guarded(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # at INFO, Orbax logs every file that it writes
            # Orbax also logs a traceback of every exception that it raises; this program reports each in one line.
            logging.get_absl_logger().addFilter(lambda record: not record.exc_info)
        sys.unraisablehook = _report_unraisable
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: every option is a flag (--name=value); see --help")
            return main(argv)
        except UserError as error:
            process = f"process {jax.process_index()}: " if jax.distributed.is_initialized() else ""
            print(f"error: {process}{error}", file=sys.stderr)
            return USER_ERROR_STATUS
        except Interrupted as stop:
            if jax.process_index() == 0:
                print(stop, file=sys.stderr)
            return Interrupted.EXIT_STATUS
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    try:
        app.run(guarded, flags_parser=parse_flags)
        raise AssertionError("absl's app.run exits")
    except BaseException as end:
        _exit(end)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and returns the other arguments. A flag that is wrong ends the program with one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {FLAGS_ERROR}{' '.join(str(error).split())}; see --help", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


def _exit(end: BaseException) -> NoReturn:
    """Ends the program by raising ``end``.

    If the program is one of several processes and fails, it exits at once: JAX's own shutdown would wait for the other
    processes, and those may be waiting for this one.
    """
    end = _flush_output(end)
    status = end.code if isinstance(end, SystemExit) else 1
    if status in (None, 0, Interrupted.EXIT_STATUS) or not jax.distributed.is_initialized():
        raise end
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _flush_output(end: BaseException) -> BaseException:
    """Flushes stdout and stderr. Returns ``end``, or the exit that replaces it because the output cannot be written.

    A reader that has seen enough (``| head``) ends the program quietly; a full disk ends it with one line. An ``end``
    that says more, such as that a run is saved, is not replaced. The default action of SIGPIPE, which other programs
    rely on, would also end this program when any socket inside it breaks, such as the one between the threads of an
    event loop that is closed while Orbax reads a checkpoint.
    """
    failed: OSError | None = None
    for stream, probe in ((sys.stderr, ""), (sys.stdout, "\n" if isinstance(end, OSError) else "")):
        try:
            print(end=probe, file=stream, flush=True)
        except OSError as error:
            failed = error
            with open(os.devnull, "w") as devnull:  # or Python flushes again at its exit, and complains
                os.dup2(devnull.fileno(), stream.fileno())
    if failed is None or not (isinstance(end, OSError) or (isinstance(end, SystemExit) and not end.code)):
        return end
    if isinstance(failed, BrokenPipeError):
        return SystemExit(BROKEN_PIPE_STATUS)
    print(f"error: standard output cannot be written: {failed.strerror}", file=sys.stderr)
    return SystemExit(USER_ERROR_STATUS)


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints exceptions that Python cannot raise, except the one that a failed save leaves behind.

    Orbax closes its event loop at the first write that fails; TensorStore's other writes end later and find the loop
    closed. The failure itself is raised when the training loop waits for the save, and reported in one line.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _exit_on_sigterm(number: int, frame: object) -> NoReturn:
    """Handles SIGTERM outside of training: no file is half-written, and schedulers restart the same command."""
    del number, frame
    print("SIGTERM: stopped; the same command goes on from what is there", file=sys.stderr)
    sys.exit(Interrupted.EXIT_STATUS)
