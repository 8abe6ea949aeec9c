"""The shape scheme of `mosaics_jax/shapes.py`, kept over the syntax tree: suffixes of array parameters, and their letters."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mosaics_jax"
ROOMS = ("ops",)  # directories and files whose functions name the shape of every array parameter
# Parameters of any shape or rank, and scalars.
ANY_SHAPE = {"x", "seed", "key"}
SUFFIX = re.compile(r"_([A-Z][A-Z0-9]*|[0-9]+[A-Z][A-Z0-9]*)$")
ARRAYS = {"Array", "Array | None"}

FILES = sorted(path for room in ROOMS for path in ((PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / room]))


def parameters(tree):
    """(line, name, annotation) of all parameters of all functions, nested ones and methods included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                yield argument.lineno, argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""


def legend(text):
    """Letters and meanings of the lines ``B  batch`` of `mosaics_jax/shapes.py`."""
    return dict(re.findall(r"^    ([A-Z])  (.+)$", text, re.MULTILINE))


def local_legend(docstring):
    """Letters and meanings of ``Shapes here: R rows of a block, E feature columns.``, which may run over lines."""
    found = re.search(r"^Shapes here: ([^.]+)\.", docstring or "", re.MULTILINE)
    return {entry.split()[0]: " ".join(entry.split()[1:]) for entry in found[1].split(",")} if found else {}


GLOBAL = legend((PACKAGE / "shapes.py").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_array_parameter_names_its_shape(path):
    tree = ast.parse(path.read_text())
    local = local_legend(ast.get_docstring(tree))
    faults = [f"{letter} is {GLOBAL[letter]!r} in shapes.py, here {meaning!r}" for letter, meaning in local.items() if letter in GLOBAL]
    for line, name, annotation in parameters(tree):
        if annotation not in ARRAYS or name in ANY_SHAPE:
            continue
        if (suffix := SUFFIX.search(name)) is None:
            faults.append(f"line {line}: {name} does not name its shape")
        elif unknown := sorted({letter for letter in suffix[1] if letter.isalpha()} - GLOBAL.keys() - local.keys()):
            faults.append(f"line {line}: {name}: no legend for {', '.join(unknown)}")
    assert not faults, "\n".join(faults)


def test_the_legend_is_read():
    assert GLOBAL["N"].startswith("capacity")
    assert local_legend("What it is.\n\nShapes here: R rows of a\nblock, E feature columns.\n") == {
        "R": "rows of a block",
        "E": "feature columns",
    }
