"""The shape scheme of `mosaics_jax/shapes.py`, checked in the source: the names of array parameters, and their letters.

A module declares letters of its own in its docstring, by a line such as ``Shapes here: R rows of a block, E features.``
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mosaics_jax"
ROOMS = ("ops", "evaluation")  # directories and files of the package whose functions are checked

# Parameters that may have any shape, by name: arrays of any rank, and scalars.
ANY_RANK = {"x", "scores", "lower", "inverse", "dinverse"}
SCALARS = {"key", "seed", "count", "i", "j"}

ARRAYS = {"Array", "Array | None", "np.ndarray", "np.ndarray | None", "Array | np.ndarray"}
SUFFIX = re.compile(r"_([A-Z0-9]*[A-Z][A-Z0-9]*)$")  # a digit is an axis of this size
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


def faults(source: str) -> list[str]:
    """What a module's source has against the scheme, one line each."""
    tree = ast.parse(source)
    shared, local = shared_legend(), local_legend(ast.get_docstring(tree) or "")
    found = [
        f"{letter} is {shared[letter]!r} in shapes.py and {local[letter]!r} here" for letter in shared & local.keys()
    ]
    for parameter in array_parameters(tree):
        name, line = parameter.arg, parameter.lineno
        if name in ANY_RANK | SCALARS:
            continue
        suffix = SUFFIX.search(name)
        if suffix is None:
            found.append(f"line {line}: the name {name} has no shape")
            continue
        unknown = {letter for letter in suffix[1] if letter.isalpha()} - shared.keys() - local.keys()
        found += [f"line {line}: {letter} of {name} is declared nowhere" for letter in sorted(unknown)]
    return found


def sources() -> list[Path]:
    paths = [
        path for room in ROOMS for path in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*"))
    ]
    return sorted(path for path in paths if path.suffix == ".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_array_parameters_name_their_shapes(path):
    problems = faults(path.read_text())
    assert not problems, "\n".join(problems)


def test_faults_are_found():
    docstring = '"""A form.\n\nShapes here: R rows of\na block, E features.\n"""\n'
    assert faults(docstring + "def f(x: Array, keys_BRE: Array, rate_H1: Array): ...") == []
    assert faults("def f(keys: Array | None): ...") == ["line 1: the name keys has no shape"]
    assert faults("def f():\n    def g(keys_BRT: Array): ...") == ["line 2: R of keys_BRT is declared nowhere"]
    assert faults('"""Shapes here: N states."""') == [f"N is {shared_legend()['N']!r} in shapes.py and 'states' here"]
