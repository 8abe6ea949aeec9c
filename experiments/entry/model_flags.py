"""Flags of all models of the registry, and which of them the chosen models have.

A flag sets one hyper-parameter for every model that has a field of that name. A flagfile may serve several models: of
its flags, those that a model lacks are not used. A flag that is typed on the command line (or in a sweep's --grid) and
that no chosen model has is an error.
"""

import dataclasses
import difflib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.models.registry import MODELS, canonical_name
from mosaics_jax.training.progress import say

ConfigClass = type[Any]  # of a dataclass whose fields are made with `settings.setting`
MODEL_CONFIGS: tuple[ConfigClass, ...] = tuple(config_class for config_class, _ in MODELS.values())


def default_values(
    config_classes: Iterable[ConfigClass], changed: Mapping[str, Any], skip: Collection[str] = ()
) -> dict[str, Any]:
    """The default of the flag for each field: from ``changed``, or else from the first class that has the field."""
    defaults: dict[str, Any] = {}
    for config_class in config_classes:
        for field in dataclasses.fields(config_class):
            if field.name not in skip:
                defaults.setdefault(field.name, changed.get(field.name, field.default))
    return defaults


def define_flags(config_classes: Iterable[ConfigClass], changed: Mapping[str, Any], skip: Collection[str] = ()) -> None:
    """Defines a flag for each field but those in ``skip``; classes that share a field share its flag.

    ``changed``: defaults that replace those of the fields.
    """
    for config_class in config_classes:
        entry.define_flags(config_class, skip=skip, **changed)


def config_fields(*config_classes: ConfigClass) -> set[str]:
    """The names of all fields of the classes."""
    return {field.name for config_class in config_classes for field in dataclasses.fields(config_class)}


def model_config_class(model_name: str) -> ConfigClass:
    """The config class of a model, by its name or an alias. Raises UserError for an unknown name."""
    try:
        return MODELS[canonical_name(model_name)][0]
    except ValueError as error:
        raise UserError(f"--{error}") from None


def fields_of_others(model_names: Iterable[str], shared: Collection[str]) -> set[str]:
    """Hyper-parameters that models of the registry have but none of ``model_names``.

    ``shared``: fields that an experiment has itself, such as a context length of the data, which are not returned.
    """
    own = config_fields(*map(model_config_class, model_names))
    return config_fields(*MODEL_CONFIGS) - own - set(shared)


def check_hyper_parameters(
    given: Iterable[str], model_names: Sequence[str], shared: Collection[str], available: Collection[str]
) -> None:
    """Raises UserError if a flag in ``given`` sets a hyper-parameter that none of ``model_names`` has.

    The error names the hyper-parameters that the models do have, those of similar names first. ``shared``: as above.
    ``available``: names of fields that are flags.
    """
    for name in sorted(fields_of_others(model_names, shared).intersection(given)):
        own = dict.fromkeys(
            field.name
            for model_name in model_names
            for field in dataclasses.fields(model_config_class(model_name))
            if field.name in available
        )
        listed = ", ".join(f"--{other}" for other in sorted(own, key=lambda other: not _similar(name, other)))
        models = " and ".join(dict.fromkeys(model_names))
        has, it = ("have", "theirs") if len(set(model_names)) > 1 else ("has", "its own")
        raise UserError(f"--{name}: {models} {has} no such hyper-parameter; {it} are {listed}")


def _similar(name: str, other: str) -> bool:
    return bool(name in other or other in name or difflib.get_close_matches(name, [other]))


def check_typed_flags(model_names: Sequence[str], shared: Collection[str]) -> None:
    """`check_hyper_parameters` for the flags on this program's command line; says which of a flagfile are not used."""
    check_hyper_parameters(typed_flags(sys.argv), model_names, shared, set(flags.FLAGS))
    unused = [name for name in sorted(fields_of_others(model_names, shared)) if flags.FLAGS[name].present]
    if unused:
        say(f"not used by {' and '.join(model_names)}, from a flagfile: {', '.join(f'--{name}' for name in unused)}")


def typed_flags(argv: Sequence[str]) -> set[str]:
    """The names of the flags in ``argv``: n_layer of ``--n_layer=2``, bias of ``--nobias``. Opens no flagfile."""
    typed = {arg.lstrip("-").partition("=")[0] for arg in argv[1:] if arg.startswith("-")}
    negated = {name for name in flags.FLAGS if flags.FLAGS[name].boolean and f"no{name}" in typed}
    return typed.intersection(flags.FLAGS) | negated
