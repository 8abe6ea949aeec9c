"""The rooms of the house: what each may import, how long a file may be, and that no exported name hides a module."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FOUNDATIONS = ("errors", "settings", "shapes", "sharding")  # files, in order
ROOMS = (
    "runtime",
    "ops",
    "nn",
    "models",
    "data",
    "training",
    "inference",
    "evaluation",
    "tasks",
    "convert",
    "planning",
)
ORDER = {name: i for i, name in enumerate(FOUNDATIONS + ROOMS)}
LONGEST = 400


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def room_of(path):
    """The first name below the package: of a folder, or of a file."""
    return path.relative_to(ROOT / "mosaics_jax").parts[0].removesuffix(".py")


def imports(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_known():
    found = {room_of(path) for path in sources("mosaics_jax")} - {"__init__"}
    assert found == set(ORDER)


def test_rooms_import_only_what_stands_before_them():
    wrong = []
    for path in sources("mosaics_jax"):
        room = room_of(path)
        if room == "__init__":
            continue
        for module in imports(path):
            parts = module.split(".")
            if parts[0] in ("experiments", "launch", "benchmarks", "tests"):
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
            if parts[0] == "mosaics_jax" and len(parts) > 1 and ORDER.get(parts[1], -1) > ORDER[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_ops_know_no_flax():
    assert not [path.name for path in sources("mosaics_jax/ops") if any("flax" in name for name in imports(path))]


def test_no_source_file_is_longer_than_a_reader_can_take_in():
    lengths = {
        path: len(path.read_text().splitlines())
        for path in sources("mosaics_jax", "experiments", "launch", "benchmarks")
    }
    assert not {str(path): length for path, length in lengths.items() if length > LONGEST}


def test_the_model_on_a_page_is_a_page():
    assert len((ROOT / "mosaics_jax/models/reference.py").read_text().splitlines()) <= 150


def test_no_function_of_a_package_hides_a_module():
    hidden = []
    for init in sources("mosaics_jax"):
        if init.name != "__init__.py":
            continue
        modules = {path.stem for path in init.parent.glob("*.py")} | {path.name for path in init.parent.iterdir()}
        for node in ast.walk(ast.parse(init.read_text())):
            if isinstance(node, ast.ImportFrom):
                hidden += [f"{init.parent.name}.{a.name}" for a in node.names if (a.asname or a.name) in modules]
    assert not hidden


def test_readme_and_contributing_name_every_room():
    readme, contributing = (ROOT / "README.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    for room in ROOMS:
        assert f"`mosaics_jax/{room}`" in readme and f"`{room}`" in contributing, room
