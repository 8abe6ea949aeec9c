"""What every entry point shares: user errors as one line, flags made from config dataclasses."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from absl import app, flags, logging

from mosaics_jax.errors import UserError
from mosaics_jax.training.stopping import Interrupted

Config = TypeVar("Config")
USER_ERROR_STATUS = 2


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs ``main`` under absl; a UserError becomes one line on standard error and exit status 2."""

    def guarded(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}: every option is a flag (--name=value); see --help")
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return USER_ERROR_STATUS
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return Interrupted.EXIT_STATUS
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(guarded)


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
    names = [field.name for field in dataclasses.fields(config_class) if field.name not in given]  # type: ignore[arg-type]
    values = {name: flags.FLAGS[name].value for name in names if name in flags.FLAGS}
    try:
        return config_class(**values, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
