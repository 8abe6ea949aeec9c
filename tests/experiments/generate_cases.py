"""Calls experiments.generate many times in one process, since starting one takes seconds: JSON cases in, results out.

A case is (arguments, what is typed); a result (exit status, standard output, standard error).
"""

import contextlib
import io
import json
import socket
import sys

from absl.testing import flagsaver

from experiments import entry, generate


def call(arguments: list[str], typed: str) -> tuple[int, str, str]:
    sys.argv = ["generate", *arguments]
    sys.stdin = io.TextIOWrapper(io.BytesIO(typed.encode(errors="surrogateescape")), encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry.run(generate.main)
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("absl's app.run exits")


if __name__ == "__main__":
    results = [call(*case) for case in json.load(sys.stdin)]
    # A connection that breaks within the program, as one of a closing event loop may, raises; it ends no process.
    here, there = socket.socketpair()
    there.close()
    with contextlib.suppress(BrokenPipeError):
        here.send(b"x")
    json.dump(results, sys.stdout)
