"""The batch script, with stand-ins for Slurm's commands: when the job is requeued."""

import os

import pytest

from tests.launch.launchers import run, stand_in


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (75, "RUNNING", True),  # preempted, or soon out of time
        (75, "COMPLETING", False),  # cancelled by its owner
        (1, "RUNNING", False),
        (0, "RUNNING", False),
    ],
)
def test_requeues_what_was_interrupted(status, state, requeued, tmp_path):
    stand_in(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" > {tmp_path}/words; exit {status}')
    stand_in(tmp_path / "bin", "squeue", f'[ "$*" = "--noheader --jobs=42 --format=%T" ] && echo {state}')
    stand_in(tmp_path / "bin", "scontrol", f'echo "$@" > {tmp_path}/asked')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = run("slurm", "python", "--prompt=Once upon a time", PATH=path, SLURM_JOB_ID="42")
    assert done.returncode == status
    words = (tmp_path / "words").read_text().splitlines()
    assert words == ["--wait=60", "python", "--prompt=Once upon a time", "--distributed"]
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else None) == ("requeue 42\n" if requeued else None)
