"""`python -m experiments.NAME` runs with malloc in huge pages, unless the environment says something about malloc."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
AT_START = "import os; print('start', repr(os.environ.get('GLIBC_TUNABLES')), flush=True)"
ROOT = pathlib.Path(__file__).parents[2]


def starts(tmp_path, *command, **given):
    """What each start of Python finds in the environment, and the whole of the result."""
    (tmp_path / "sitecustomize.py").write_text(AT_START)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), **given}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    return [line[6:] for line in done.stdout.splitlines() if line.startswith("start ")], done


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_starts_once_more_with_the_same_command(tmp_path, package):
    found, done = starts(tmp_path, "-W", "error", "-m", f"{package}.nothing", "--flag=a b")
    assert found == ["None", "'glibc.malloc.hugetlb=1'"]
    assert done.returncode == 1 and f"No module named {package}.nothing" in done.stderr


def test_a_setting_that_is_given_stays(tmp_path):
    found, _ = starts(tmp_path, "-m", "experiments.nothing", GLIBC_TUNABLES="")
    assert found == ["''"]


def test_an_import_starts_nothing(tmp_path):
    found, done = starts(tmp_path, "-c", "import experiments, benchmarks; print('done')", "-m")
    assert found == ["None"] and done.stdout.endswith("done\n")
