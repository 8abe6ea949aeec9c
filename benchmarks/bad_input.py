"""Tries every bad input that benchmarks/bad_input_cases.py lists, for all entry points, and writes what each prints.

    python -m benchmarks.bad_input [--only=WORD] [--out=benchmarks/results/bad_input.md]

Each command must exit with a status other than 0 and print one line on standard error (besides logged warnings) and no
traceback. A case runs in a fork of one process that has imported the libraries: its exit is real, and imports are made
once. Exits with status 1 if a case does otherwise.
"""

import argparse
import importlib
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings

from benchmarks.bad_input_cases import commands
from benchmarks.bad_input_files import make_files
from mosaics_jax.runtime import staging

# What the entry points import. The entry points themselves define flags, so each case imports its own.
LIBRARIES = (
    "matplotlib.pyplot",
    "sentencepiece",
    "mosaics_jax.convert",
    "mosaics_jax.data.corpus",
    "mosaics_jax.data.regbench",
    "mosaics_jax.evaluation.moons",
    "mosaics_jax.inference",
    "mosaics_jax.models.registry",
    "mosaics_jax.training",
)
ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 300  # limit of one case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="try only the cases whose command contains this word")
    parser.add_argument("--out", help="file for the table, as Markdown")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    for library in LIBRARIES:
        importlib.import_module(library)
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")  # JAX has started nothing yet
    os.chdir(ROOT)
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as directory:
        files = pathlib.Path(directory)
        make_files(files, ROOT)
        for command in commands():
            shown = " ".join(word.replace("{files}", "FILES") for word in command)
            if options.only not in shown:
                continue
            for left in files.glob("new*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            status, out, err = attempt([word.format(files=files) for word in command])
            lines = [line for line in err.splitlines() if line.strip() and not re.match(r"W\d{4} |WARNING:absl:", line)]
            good = status != 0 and len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in out
            if not good:
                failures.append(f"{shown}\nstatus {status}\n{out[-500:]}\n{err[-3000:]}")
            line = lines[-1].replace(str(files), "FILES") if lines else ""
            rows.append((shown, str(status), line))
            print(f"{'ok ' if good else 'BAD'} {status} {shown}\n      {line}", flush=True)
    print(f"{len(rows)} cases, {len(failures)} with another outcome", *failures, sep="\n\n")
    if options.out:
        table = "".join(f"| `{escape(command)}` | {status} | {escape(line)} |\n" for command, status, line in rows)
        text = (
            "What bad input prints, made by `python -m benchmarks.bad_input`; FILES is a temporary directory.\n\n"
            f"{len(rows)} cases, {len(failures)} with another outcome.\n\n"
            "| command | exit status | line |\n| --- | --- | --- |\n"
        )
        staging.write_file(options.out, (text + table).encode())
    return 1 if failures else 0


def attempt(command: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    if command[0].endswith(".sh"):
        done = subprocess.run(["bash", *command], capture_output=True, text=True, timeout=SECONDS)
        return done.returncode, done.stdout, done.stderr
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            for number, file in enumerate((open(os.devnull), out, err)):  # noqa: SIM115 (for the child's life)
                os.dup2(file.fileno(), number)
            run(*command)
        _, waited = os.waitpid(child, 0)
        out.seek(0), err.seek(0)
        return os.waitstatus_to_exitcode(waited), out.read(), err.read()


def run(module: str, *arguments: str) -> None:
    """Runs the module as the main program, and exits as Python would."""
    signal.alarm(SECONDS)
    if module.startswith("launch."):
        os.environ["PATH"] = os.devnull  # no launcher reaches a cloud
    status: object = 0
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
