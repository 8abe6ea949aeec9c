"""Language models on 8 virtual devices: on every mesh, losses and gradients equal those of one device."""

import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).with_name("on_eight_devices.py")


def test_every_mesh_gives_the_gradients_of_one_device(request):
    root = request.config.rootpath
    command = [sys.executable, "-W", "error", PROGRAM, root / ".cache" / "jax"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    equal = [line.partition(": ")[0] for line in done.stdout.splitlines() if "gradients equal" in line]
    assert len(equal) == len(set(equal)) == 10
    assert {"library sequence:8", "nano fsdp:2,tensor:2,sequence:2", "gpt2 sequence:8"} < set(equal)
