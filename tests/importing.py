"""Imports every module of a package, and says which of them changes anything outside; run as a program with its name.

The libraries that the package imports are imported first: what those change is not ours. Prints a line for each change.
"""

import ast
import importlib
import importlib.util
import logging
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags

OURS = ("mosaics_jax", "experiments", "launch", "benchmarks")


def modules(package: str) -> Iterator[str]:
    root = importlib.util.find_spec(package)
    assert root is not None
    yield package
    for module in pkgutil.walk_packages(root.submodule_search_locations, f"{package}."):
        yield module.name


def imported_libraries(package: str) -> set[str]:
    """The modules outside this repository that any file of the repository's packages imports."""
    names: set[str] = set()
    for path in (path for ours in OURS for path in Path(ours).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    return {name for name in names if name.partition(".")[0] not in OURS and not name.startswith("torch")}


def state() -> dict[str, Any]:
    """All that an import must not change."""
    return {
        "process": os.getpid(),
        "directory": os.getcwd(),
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "threads": threading.active_count(),
        "warnings": list(warnings.filters),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook, sys.gettrace()),
        "log handlers": (list(logging.root.handlers), logging.root.level),
        "import system": (list(sys.meta_path), list(sys.path_hooks)),
        **{f"environment {name}": value for name, value in os.environ.items()},
        **{
            f"signal {number.name}": signal.getsignal(number)
            for number in signal.valid_signals()
            if hasattr(number, "name")
        },
        **{f"jax.config.{name}": value for name, value in jax.config.values.items()},
        **{f"module {name}": id(module) for name, module in sys.modules.items()},
    }


def main(package: str) -> None:
    for name in sorted(imported_libraries(package)):
        try:
            importlib.import_module(name)
        except ImportError:  # a name in a module, or a library that is not installed
            continue
    for name in modules(package):
        before, known_flags = state(), set(flags.FLAGS)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
        for flag in set(flags.FLAGS) - known_flags:  # two entry points may define the same flag
            delattr(flags.FLAGS, flag)
        after = state()
        for what in before.keys() | after.keys():
            is_new_module = what.startswith("module ") and what not in before and sys.modules[what[7:]] is not None
            if before.get(what) != after.get(what) and not is_new_module:
                print(f"{name}: {what}: {before.get(what)} -> {after.get(what)}")


if __name__ == "__main__":
    main(sys.argv[1])
    print("done")
