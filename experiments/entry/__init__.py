"""What every entry point shares: flags made from config dataclasses, and `run`."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from absl import flags

from mosaics_jax.errors import UserError
from mosaics_jax.runtime import exits
from mosaics_jax.runtime.memory import restart_with_huge_pages
from mosaics_jax.runtime.processes import Processes

Config = TypeVar("Config")

# Flag -> the configs whose default and help it has, where several configs declare it differently.
SHARED: dict[str, tuple[str, ...]] = {
    "vocab_size": ("CorpusConfig",),  # the models' V is that of the tokenizer
    "context_length": ("TextConfig", "MQARConfig"),  # the positions that a model learns are those of the data
    **dict.fromkeys(("n_layer", "n_head", "n_embd"), ("MosaicConfig",)),  # other sizes than the zoo's own defaults
    "steps": ("RunConfig",),  # 0, its default, becomes a number of steps before LoopConfig is made
}
_declared_by: dict[flags.Flag, str] = {}  # flag -> name of its config


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs ``main`` as a program: parses the flags, joins the other processes, and exits (`runtime.exits`)."""
    define_flags(Processes)

    def joined(argv: list[str]) -> int | None:
        restart_with_huge_pages(main)
        from_flags(Processes).join()
        return main(argv)

    exits.run(joined)


def define_flags(config_class: type, skip: Iterable[str] = (), **defaults: Any) -> None:
    """Defines a flag for each field of ``config_class`` but those in ``skip``, with its help text.

    ``defaults`` replace those of the fields. Configs may share a flag. Raises ValueError if a flag is defined already
    with another type, default or help, unless SHARED names the config that defined it.
    """
    for field in dataclasses.fields(config_class):
        if field.name in skip:
            continue
        flag = _make_flag(field, defaults.get(field.name, field.default))
        if field.name not in flags.FLAGS:
            # As if the entry file had defined the flag itself; otherwise --help would omit it.
            flags.DEFINE_flag(flag, module_name=sys.argv[0])
            _declared_by[flag] = config_class.__name__
            continue
        first = flags.FLAGS[field.name]
        owner = _declared_by.get(first, "the entry point")
        if _declaration(flag) != _declaration(first) and owner not in SHARED.get(field.name, ()):
            raise ValueError(
                f"--{field.name}: {config_class.__name__} has {_declaration(flag)}, {owner} has {_declaration(first)}: "
                "make them equal, or name the config that counts in experiments.entry.SHARED"
            )


def _make_flag(field: "dataclasses.Field[Any]", default: Any) -> flags.Flag:
    name, help_text, choices = field.name, field.metadata["help"], field.metadata["choices"]
    if choices:
        return flags.EnumFlag(name, default, help_text, list(choices))
    if isinstance(default, bool):
        return flags.BooleanFlag(name, default, help_text)
    parsers: dict[type, Any] = {int: flags.IntegerParser, float: flags.FloatParser, str: flags.ArgumentParser}
    return flags.Flag(parsers[type(default)](), flags.ArgumentSerializer(), name, default, help_text)


def _declaration(flag: flags.Flag) -> tuple[str, Any, str | None]:
    return flag.flag_type(), flag.default, flag.help


def from_flags(config_class: type[Config], **given: Any) -> Config:
    """The config that the flags describe; ``given`` fields are not read from flags. Raises UserError on a bad value."""
    # The type variable does not say that it is a dataclass.
    names = [field.name for field in dataclasses.fields(config_class) if field.name not in given]  # type: ignore[arg-type]
    values = {name: flags.FLAGS[name].value for name in names if name in flags.FLAGS}
    try:
        return config_class(**values, **given)
    except ValueError as error:
        raise UserError(str(error)) from error
