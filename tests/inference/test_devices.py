"""Generation from the parameters of sharded training, in a process with 8 virtual devices."""

import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).with_name("on_eight_devices.py")


def test_sharded_parameters_generate_as_whole_ones_in_memory_and_opened(request):
    root = request.config.rootpath
    command = [sys.executable, "-W", "error", PROGRAM, root / ".cache" / "jax"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr
