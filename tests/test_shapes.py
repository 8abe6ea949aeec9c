"""The shape scheme of `mosaics_jax/shapes.py`, checked in the source code.

Every parameter that is annotated as an array has a suffix, or is listed below. Every letter of the suffix of a
parameter or variable is in the legend of `shapes.py` or declared in the module's docstring, by a line such as
``Shapes here: R rows of a block, E features.``
"""

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mosaics_jax"
ROOMS = ("ops", "nn", "models", "evaluation")  # directories of the package that are checked

# Array parameters without a suffix. In every file: ``x`` and ``scores`` of any rank, and scalars.
UNSUFFIXED = {"x", "scores", "key", "seed", "dropout_seed", "count", "i", "j"}
# In one file: arrays of any rank, or with any leading axes, and scalars of this file.
UNSUFFIXED_IN = {
    "ops/delta_rule.py": {"lower", "inverse", "dinverse"},
    "ops/dropout_mask.py": {"row", "column"},
    "ops/kernel_regression.py": {"queries", "keys", "values", "mask", "keep"},
    "ops/linear_keys.py": {"sums", "total"},
    "ops/losses.py": {"logits", "targets", "total", "dtotal"},
    "ops/pallas_retrieval.py": {"array", "left", "right"},
    "ops/weights.py": {"mask", "weights", "keep", "values", "log_total", "gradients", "inner"},
    "nn/layers.py": {"dy"},
    "nn/memory.py": {"before", "sequence", "start"},
    "models/moons.py": {"w"},
}

ARRAYS = {"Array", "Array | None", "np.ndarray", "np.ndarray | None", "Array | np.ndarray"}
SUFFIX = re.compile(r"^_?[a-z]\w*?_([A-Z0-9]*[A-Z][A-Z0-9]*)$")  # a digit is an axis of this size
LEGEND_LINE = re.compile(r"^    ([A-Z])  (.+)$", re.MULTILINE)
LOCAL_LEGEND = re.compile(r"^Shapes here: ([^.]+)\.", re.MULTILINE)


def shared_legend() -> dict[str, str]:
    """The letters of `mosaics_jax/shapes.py` with their meanings."""
    return dict(LEGEND_LINE.findall((PACKAGE / "shapes.py").read_text()))


def local_legend(docstring: str) -> dict[str, str]:
    """The letters that a module's docstring declares, with their meanings."""
    match = LOCAL_LEGEND.search(docstring)
    entries = (entry.split(maxsplit=1) for entry in match[1].split(",")) if match else ()
    return dict(entries)


def array_parameters(tree: ast.Module) -> Iterator[ast.arg]:
    """The parameters annotated as arrays of all functions: public, private, methods and nested ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                if parameter.annotation and ast.unparse(parameter.annotation) in ARRAYS:
                    yield parameter


def suffixed_names(tree: ast.Module) -> dict[str, int]:
    """The names of parameters, variables and fields that have a suffix, each with the line of its first use."""
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
        if SUFFIX.search(name):
            names[name] = min(names.get(name, node.lineno), node.lineno)
    return names


def faults(source: str, unsuffixed: Collection[str] = ()) -> list[str]:
    """The violations of the scheme in a module's source, one line each."""
    tree = ast.parse(source)
    shared, local = shared_legend(), local_legend(ast.get_docstring(tree) or "")
    violations = [
        f"{letter} is {shared[letter]!r} in shapes.py and {local[letter]!r} here" for letter in shared & local.keys()
    ]
    names = suffixed_names(tree)
    for parameter in array_parameters(tree):
        if parameter.arg not in {*names, *UNSUFFIXED, *unsuffixed}:
            violations.append(f"line {parameter.lineno}: the name {parameter.arg} has no shape")
    for name, line in names.items():
        unknown = {letter for letter in SUFFIX.search(name)[1] if letter.isalpha()} - shared.keys() - local.keys()
        violations += [f"line {line}: {letter} of {name} is declared nowhere" for letter in sorted(unknown)]
    return violations


def sources() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("name", sources())
def test_names_of_arrays_say_their_shapes(name):
    source = (PACKAGE / name).read_text()
    violations = faults(source, UNSUFFIXED_IN.get(name, ()))
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize("name", UNSUFFIXED_IN)
def test_every_listed_name_is_needed(name):
    parameters = {parameter.arg for parameter in array_parameters(ast.parse((PACKAGE / name).read_text()))}
    assert UNSUFFIXED_IN[name] <= parameters - UNSUFFIXED


def test_violations_are_reported():
    docstring = '"""A form.\n\nShapes here: R rows of\na block, E features.\n"""\n'
    assert faults(docstring + "def f(x: Array, keys_BRE: Array, rate_H1: Array): ...") == []
    assert faults("def f(keys: Array | None): ...") == ["line 1: the name keys has no shape"]
    assert faults("def f(keys: Array): ...", {"keys"}) == []
    assert faults("def f():\n    def g(keys_BRT: Array): ...") == ["line 2: R of keys_BRT is declared nowhere"]
    assert faults("y_BR = 1") == ["line 1: R of y_BR is declared nowhere"]
    states = f"N is {shared_legend()['N']!r} in shapes.py and 'states' here"
    assert faults('"""Shapes here: N states."""\nx_N = 1') == [states]
