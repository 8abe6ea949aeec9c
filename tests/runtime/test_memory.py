"""`entry.run` restarts ``python -m NAME`` with huge pages, unless the environment sets malloc's tunables."""

import os
import subprocess
import sys

import pytest

from mosaics_jax.runtime.memory import HUGE_PAGES, TUNABLES, restart_with_huge_pages
from tests.experiments.entries import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")

PROGRAM = f"""
import os, sys
from experiments import entry
from absl import flags

WORD = flags.DEFINE_string("word", "", "a word")


def main(argv):
    print(os.getpid(), os.environ.get("{TUNABLES}"), WORD.value, sys.stdin.read())


print("imported", flush=True)
if __name__ == "__main__":
    entry.run(main)
"""


def run(tmp_path, *command, **environment):
    """Runs Python with a module ``program`` on its path; the lines that it prints."""
    (tmp_path / "program.py").write_text(PROGRAM)
    inherited = {name: value for name, value in os.environ.items() if name != TUNABLES}
    inherited["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    with subprocess.Popen(
        [sys.executable, *command],
        env={**inherited, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, errors = process.communicate("typed")
    return process, [line.replace(str(process.pid), "PID") for line in out.splitlines()], errors


def test_restarts_the_same_command_in_the_same_process(tmp_path):
    process, lines, errors = run(tmp_path, "-W", "error", "-m", "program", "--word=a b")
    assert lines == ["imported", "imported", f"PID {HUGE_PAGES} a b typed"], errors
    assert process.returncode == 0


@pytest.mark.parametrize("value", ["", "glibc.malloc.arena_max=2"])
def test_a_setting_in_the_environment_stays(tmp_path, value):
    _, lines, errors = run(tmp_path, "-m", "program", **{TUNABLES: value})
    assert lines == ["imported", f"PID {value}  typed"], errors


def test_only_python_m_is_restarted(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    _, lines, errors = run(tmp_path, str(tmp_path / "program.py"))
    assert lines == ["imported", "PID None  typed"], errors
    _, lines, errors = run(tmp_path, "-c", "import program; program.entry.run(program.main)")
    assert lines == ["imported", "PID None  typed"], errors


def test_a_wrong_flag_or_help_restarts_nothing(tmp_path):
    process, lines, errors = run(tmp_path, "-m", "program", "--wort=a")
    assert (process.returncode, lines) == (2, ["imported"]), errors
    assert errors.startswith("error: flags: Unknown command line flag 'wort'")


def test_a_main_that_was_imported_restarts_nothing(monkeypatch):
    """As in a test or a notebook, whose own command line would be run again."""
    monkeypatch.delenv(TUNABLES, raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("restarted"))
    restart_with_huge_pages(test_only_python_m_is_restarted)


def test_a_module_that_another_one_runs_restarts_nothing(tmp_path):
    """The command line is that of the other one, which would run the module again, and so on."""
    (tmp_path / "outer.py").write_text(
        "import runpy, sys\nsys.argv = ['program']\nrunpy.run_module('program', run_name='__main__', alter_sys=True)\n"
    )
    _, lines, errors = run(tmp_path, "-m", "outer")
    assert lines == ["imported", "PID None  typed"], errors
