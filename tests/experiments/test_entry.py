"""Flags made from config dataclasses: one declaration for all configs, or the one that `entry.SHARED` names."""

import dataclasses

import pytest
from absl import flags

from experiments import entry
from experiments.entry import language_flags, model_flags
from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Depth:
    test_depth: int = setting(2, "L: blocks")
    test_form: str = setting("auto", "form of retrieval", ("auto", "naive"))

    def __post_init__(self):
        if self.test_depth < 1:
            raise ValueError("test_depth must be at least 1")


@dataclasses.dataclass(frozen=True)
class SameDepth:
    test_depth: int = setting(2, "L: blocks")


@dataclasses.dataclass(frozen=True)
class OtherHelp:
    test_depth: int = setting(2, "L: layers")


@dataclasses.dataclass(frozen=True)
class OtherDefault:
    test_depth: int = setting(12, "L: blocks")


@dataclasses.dataclass(frozen=True)
class OtherType:
    test_depth: float = setting(2.0, "L: blocks")


@dataclasses.dataclass(frozen=True)
class OtherChoices:
    test_form: str = setting("auto", "form of retrieval", ("auto", "blockwise"))


@pytest.fixture(autouse=True)
def without_test_flags():
    """Removes the flags that a test defines."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    yield
    for name in [name for name in flags.FLAGS if name.startswith("test_")]:
        delattr(flags.FLAGS, name)


def test_configs_share_an_equal_flag():
    entry.define_flags(Depth)
    entry.define_flags(SameDepth)
    flags.FLAGS["test_depth"].parse("5")
    assert entry.from_flags(SameDepth) == SameDepth(5) and entry.from_flags(Depth) == Depth(5)
    assert entry.from_flags(Depth, test_depth=7) == Depth(7)
    flags.FLAGS["test_depth"].parse("0")
    with pytest.raises(UserError, match="at least 1"):
        entry.from_flags(Depth)


@pytest.mark.parametrize("other", [OtherHelp, OtherDefault, OtherType, OtherChoices])
def test_a_flag_that_is_declared_differently_is_an_error(other):
    entry.define_flags(Depth)
    with pytest.raises(ValueError, match=rf"--test_\w+: {other.__name__} has .*, Depth has .*experiments.entry.SHARED"):
        entry.define_flags(other)
    entry.define_flags(other, skip=("test_depth", "test_form"))


def test_models_that_declare_a_flag_differently_are_an_error():
    with pytest.raises(ValueError, match=r"--test_depth: OtherDefault has .*, Depth has"):
        model_flags.define_flags([Depth, OtherDefault], {})


def test_language_flags_are_defined_from_the_configs_themselves(monkeypatch):
    """With all defaults given, a config's own default would never be compared."""
    changed = []
    monkeypatch.setattr(language_flags, "define_flags", lambda _, defaults: changed.append(defaults))
    language_flags.define_language_flags()
    assert changed == [{}]


def test_defaults_of_the_experiment_make_flags_equal():
    entry.define_flags(Depth, test_depth=12)
    entry.define_flags(OtherDefault)
    assert flags.FLAGS["test_depth"].default == 12
    with pytest.raises(ValueError, match="--test_depth: SameDepth has"):
        entry.define_flags(SameDepth)


def test_a_table_names_the_config_that_counts(monkeypatch):
    monkeypatch.setitem(entry.SHARED, "test_depth", ("OtherHelp",))
    entry.define_flags(OtherHelp)
    entry.define_flags(Depth)
    assert flags.FLAGS["test_depth"].help == "L: layers"
    delattr(flags.FLAGS, "test_depth")
    entry.define_flags(SameDepth)
    with pytest.raises(ValueError, match="--test_depth: OtherHelp has"):
        entry.define_flags(OtherHelp)  # it counts, so it must be the first


def test_a_flag_of_the_entry_point_itself_counts_too():
    flags.DEFINE_integer("test_depth", 3, "blocks")
    with pytest.raises(ValueError, match=r"--test_depth: Depth has .*, the entry point has "):
        entry.define_flags(Depth)
