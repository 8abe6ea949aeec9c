"""Entry points in processes of their own, as a user starts them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = ROOT / "experiments" / "flags" / "smoke.flags"


def command(entry: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"experiments.{entry}", *map(str, arguments)]


def environment() -> dict[str, str]:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    return {**os.environ, "JAX_PLATFORMS": "cpu", **cache}


def run(entry: str, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return run_in(ROOT, entry, *arguments, stdin=stdin)


def run_in(
    directory: pathlib.Path, entry: str, *arguments: object, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run`, in a working directory that is not the repository's."""
    return subprocess.run(
        command(entry, *arguments),
        cwd=directory,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )


def refused(entry: str, *arguments: object) -> str:
    """The one error line that a refused command prints; fails if it prints several, or a traceback."""
    done = run(entry, *arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]
