"""Importing any module of ours changes nothing outside: environment, signals, hooks, JAX's config, other modules."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("mosaics_jax", "experiments", "launch", "benchmarks")


def python(*arguments, path=(), **environment):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_import_changes_nothing_outside(package):
    done = python(ROOT / "tests" / "importing.py", package)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_a_change_is_noticed(tmp_path):
    """The check itself, on a package that does what ours must not."""
    package = tmp_path / "launch"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shell.py").write_text("import os\nos.environ['SHELL_OF_OURS'] = '1'\n")
    (package / "block.py").write_text("import sys\nsys.modules['torch'] = None\n")
    (package / "handler.py").write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n")
    (package / "settings.py").write_text("import jax\njax.config.update('jax_enable_x64', True)\n")
    done = python(ROOT / "tests" / "importing.py", "launch", path=[str(tmp_path)])
    assert done.returncode == 0, done.stderr
    changes = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert changes == {
        "launch.shell: environment SHELL_OF_OURS",
        "launch.block: module torch",
        "launch.handler: signal SIGTERM",
        "launch.settings: jax.config.jax_enable_x64",
        "",
    }


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_finding_an_entry_point_starts_python_once(tmp_path, package):
    """``python -m`` imports the package before it runs the module."""
    (tmp_path / "sitecustomize.py").write_text("print('started', flush=True)")
    variables = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", f"{package}.nothing"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.stdout == "started\n" and f"No module named {package}.nothing" in done.stderr
