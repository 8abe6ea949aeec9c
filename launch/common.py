"""Shared by the launchers: the command after ``--``, dry runs, errors in one line. Needs only Python's library."""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Container, Mapping, Sequence
from typing import NoReturn

TRY_AGAIN = 75  # mosaics_jax.training.Interrupted.EXIT_STATUS: a signal stopped the run, and its state is saved


def fail(message: str) -> NoReturn:
    """Ends the program with one line."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """Options, then ``--``, then the command to run, as it would be typed on one host."""

    def __init__(self, description: str | None):
        super().__init__(
            description=description,
            usage="%(prog)s OPTIONS -- python -m experiments.NAME FLAGS",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--dry_run", action="store_true", help="print what would be run, and run nothing")

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see --help")

    def parse(
        self, argv: Sequence[str], needing_command: Container[str] | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The options and the command.

        The command may be missing, unless the option ``action`` is in ``needing_command`` (None: it is always needed).
        An error in either ends the program with one line.
        """
        cut = list(argv).index("--") if "--" in argv else len(argv)
        options, command = self.parse_args(argv[:cut]), list(argv[cut + 1 :])
        if not command and (needing_command is None or options.action in needing_command):
            fail("no command to run: end with -- python -m experiments.NAME FLAGS")
        return options, command


def count(text: str) -> int:
    """A type for ``add_argument``: an integer of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def name(text: str) -> str:
    """A type for ``add_argument``: a name for Google Cloud and Kubernetes, short enough for the suffixes they add."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not up to 40 small letters, digits and hyphens, a letter first")
    return text


def shown(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """The command as a line for a shell."""
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()), shlex.join(command)]
    )


def run(command: Sequence[str], dry_run: bool, text: str | None = None) -> int:
    """Runs a command with ``text`` as standard input and returns its exit status. A dry run prints both instead."""
    if dry_run:
        print(shown(command) if text is None else f"{shown(command)} << 'END'\n{text}END")
        return 0
    try:
        return subprocess.run(command, input=text, text=True, check=False).returncode
    except (FileNotFoundError, NotADirectoryError):  # NotADirectoryError: PATH names a file
        fail(f"{command[0]} is not installed here, or not on PATH; see launch/README.md")
