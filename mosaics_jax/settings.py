"""Fields of config dataclasses that carry their own help text.

Every setting is documented once, where it is declared; the experiments turn the same text into ``--help``.
"""

import dataclasses
from typing import Any


def setting(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with a default, a line of help (meaning, unit, symbol) and, for an enumeration, its values."""
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


def check_choices(config: Any) -> None:
    """Raises ValueError if a field of ``config`` that declares choices holds none of them."""
    for field in dataclasses.fields(config):
        choices = field.metadata.get("choices", ())
        value = getattr(config, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name}={value!r} is not one of {', '.join(choices)}")


def check_sizes(config: object, names: tuple[str, ...]) -> None:
    """Raises ValueError unless each named field is at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


def check_rates(config: object, names: tuple[str, ...]) -> None:
    """Raises ValueError unless each named field is a dropout rate."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 0 and below 1")


def check_heads(n_embd: int, n_head: int) -> None:
    """Raises ValueError unless the heads divide the width."""
    if n_embd % n_head:
        raise ValueError(f"n_embd={n_embd} is not divisible by n_head={n_head}")
