"""What every entry point shares: user errors as one line, flags made from config dataclasses, several processes."""

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import jax
from absl import app, flags, logging

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.stopping import Interrupted
from mosaics_jax.settings import setting

Config = TypeVar("Config")
USER_ERROR_STATUS = 2
UNREAD_STATUS = 128 + signal.SIGPIPE
FLAGS_ERROR = "flags: "


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of one run find each other; without any of these flags there is one."""

    distributed: bool = setting(
        False, "join the other processes of this TPU pod, GKE job or Slurm job; JAX finds out which they are"
    )
    coordinator: str = setting("", "HOST:PORT of process 0, instead of --distributed where JAX cannot find it out")
    num_processes: int = setting(0, "with --coordinator: processes in all")
    process_id: int = setting(-1, "with --coordinator: which of them this one is, from 0")

    def __post_init__(self) -> None:
        if not self.coordinator and (self.num_processes or self.process_id != -1):
            raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
        if not self.coordinator:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator={self.coordinator} is not HOST:PORT")
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--coordinator needs --num_processes and a --process_id from 0 up to it; "
                f"got {self.num_processes} and {self.process_id}"
            )

    def join(self) -> None:
        """Waits for the other processes, if there are any. Comes before any use of JAX. Raises UserError."""
        if not (self.distributed or self.coordinator):
            return
        jax.config.update("jax_enable_preemption_service", False)  # see runtime/stopping.py
        given = (self.coordinator, self.num_processes, self.process_id) if self.coordinator else ()
        try:
            jax.distributed.initialize(*given)
        except ValueError:
            raise UserError(
                "--distributed: this is no TPU pod, GKE job or Slurm job that JAX knows; "
                "start it with a script of launch/, or give --coordinator, --num_processes and --process_id"
            ) from None
        except RuntimeError as error:
            raise UserError(f"the processes did not find each other: {str(error).splitlines()[0]}") from error
        if jax.process_index() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the first process speaks for all)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs ``main`` under absl; a UserError becomes one line on standard error and exit status 2."""
    define_flags(Processes)

    def guarded(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
            # ... and logs, traceback and all, what it raises too, which is told below in one line.
            logging.get_absl_logger().addFilter(lambda record: not record.exc_info)
        sys.unraisablehook = _unraisable
        signal.signal(signal.SIGTERM, _terminated)
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: every option is a flag (--name=value); see --help")
            from_flags(Processes).join()
            return main(argv)
        except UserError as error:
            where = f"process {jax.process_index()}: " if jax.distributed.is_initialized() else ""
            print(f"error: {where}{error}", file=sys.stderr)
            return USER_ERROR_STATUS
        except Interrupted as stop:
            if jax.process_index() == 0:
                print(stop, file=sys.stderr)
            return Interrupted.EXIT_STATUS
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    try:
        app.run(guarded, flags_parser=parse)
    except BaseException as end:
        _leave(end)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags, and gives what is left. Ends the program with one line if one is wrong."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {FLAGS_ERROR}{' '.join(str(error).split())}; see --help", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


def _leave(end: BaseException) -> NoReturn:
    """Ends the program. One of several processes that fails does not wait for the others, who may wait for it."""
    end = _unprinted(end)
    status = end.code if isinstance(end, SystemExit) else 1
    if status in (None, 0, Interrupted.EXIT_STATUS) or not jax.distributed.is_initialized():
        raise end
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _unprinted(end: BaseException) -> BaseException:
    """How to end if what is printed cannot be: quietly if those who read it have had enough of it (`| head`).

    That is ``end`` if all could be printed, or if it says more, such as that a run is saved. To leave this to SIGPIPE,
    as other programs do, would end the program at any broken connection in it, such as one between the threads of an
    event loop that is being closed while a checkpoint is read.
    """
    failed: OSError | None = None
    for stream, probe in ((sys.stderr, ""), (sys.stdout, "\n" if isinstance(end, OSError) else "")):
        try:
            print(end=probe, file=stream, flush=True)
        except OSError as error:
            failed = error
            with open(os.devnull, "w") as nowhere:  # or Python would try it again, and complain, as it ends
                os.dup2(nowhere.fileno(), stream.fileno())
    if failed is None or not (isinstance(end, OSError) or (isinstance(end, SystemExit) and not end.code)):
        return end
    if isinstance(failed, BrokenPipeError):
        return SystemExit(UNREAD_STATUS)
    print(f"error: standard output cannot be written: {failed.strerror}", file=sys.stderr)
    return SystemExit(USER_ERROR_STATUS)


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Prints what Python cannot raise, but for one thing, which a failed save leaves behind.

    Orbax closes the event loop at the first write that fails; TensorStore's other writes end later and miss the loop.
    The failure itself is raised when the save is waited for, and told in one line.
    """
    error = found.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(found)


def _terminated(number: int, frame: object) -> NoReturn:
    """Takes SIGTERM outside of training: nothing is half-written, and schedulers start the same command again."""
    del number, frame
    print("SIGTERM: stopped; the same command goes on from what is there", file=sys.stderr)
    sys.exit(Interrupted.EXIT_STATUS)


def define_flags(config_class: type, skip: Iterable[str] = (), **defaults: Any) -> None:
    """Defines a flag for each field of ``config_class``, with its help text; a name already defined is shared."""
    makers: dict[type, Any] = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(config_class):
        if field.name in skip or field.name in flags.FLAGS:
            continue
        default = defaults.get(field.name, field.default)
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        # As if the entry file had defined it itself, or --help would leave it out.
        owner: dict[str, Any] = {"module_name": sys.argv[0]}
        if choices:
            flags.DEFINE_enum(field.name, default, list(choices), help_text, **owner)
        else:
            makers[type(default)](field.name, default, help_text, **owner)


def from_flags(config_class: type[Config], **given: Any) -> Config:
    """The config that the flags describe; ``given`` fields are not read from flags. Raises UserError on a bad value."""
    # The type variable does not say that it is a dataclass.
    names = [field.name for field in dataclasses.fields(config_class) if field.name not in given]  # type: ignore[arg-type]
    values = {name: flags.FLAGS[name].value for name in names if name in flags.FLAGS}
    try:
        return config_class(**values, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
