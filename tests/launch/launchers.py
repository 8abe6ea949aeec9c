"""Launchers as a user starts them, and stand-ins for the programs that they call."""

import os
import subprocess
import sys

from tests.experiments.entries import ROOT


def command(launcher: str, *arguments: object) -> list[str]:
    start = ["/bin/bash", "launch/slurm.sh"] if launcher == "slurm" else [sys.executable, "-m", f"launch.{launcher}"]
    return [*start, *map(str, arguments)]


def run(launcher: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(launcher, *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def shown(launcher: str, *arguments: object, **environment: str) -> list[str]:
    """The lines of a dry run."""
    done = run(launcher, "--dry_run", *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


def refused(launcher: str, *arguments: object, **environment: str) -> str:
    """The single line that a refused command prints."""
    done = run(launcher, *arguments, **environment)
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def stand_in(directory, name, script):
    """Writes a shell script that stands in for a program."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/bash\n{script}")
    path.chmod(0o755)
