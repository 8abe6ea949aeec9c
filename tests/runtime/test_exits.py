"""How entry points end: with exceptions that Python cannot raise, and with output that cannot be written."""

import os
import subprocess
import sys

import pytest

from mosaics_jax.runtime.exits import BROKEN_PIPE_STATUS, USER_ERROR_STATUS
from tests.experiments.entries import ROOT, environment

LATE_WRITE = """
import asyncio
import tensorstore
from experiments import entry

promise, future = tensorstore.Promise.new()


async def wait():
    await future


async def give_up():
    asyncio.create_task(wait())
    await asyncio.sleep(0)


class Broken:
    def __del__(self):
        raise RuntimeError("another one")


def main(argv):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up())
    loop.close()
    promise.set_result(1)
    Broken()


entry.run(main)
"""

TALK = """
import sys
from experiments import entry


def main(argv):
    sys.stdin.readline()
    for _ in range({lines}):
        print("a line", flush={flush})
    return {status}


entry.run(main)
"""

BROKEN_CONNECTION = """
import socket
from experiments import entry


def main(argv):
    here, there = socket.socketpair()
    there.close()
    here.send(b"x")


entry.run(main)
"""


def python(program):
    buffered = {"PYTHONUNBUFFERED": ""}
    return {"args": [sys.executable, "-c", program], "cwd": ROOT, "env": {**environment(), **buffered}}


def test_writes_that_end_after_a_failed_save_print_nothing():
    """As on a full disk, where the first write to fail ends the wait for the others. Everything else is printed."""
    done = subprocess.run(**python(LATE_WRITE), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Event loop is closed" not in done.stderr
    assert "RuntimeError: another one" in done.stderr


@pytest.mark.parametrize("both", [False, True], ids=["standard output", "standard error too"])
@pytest.mark.parametrize(("lines", "flush"), [(3, True), (3, False), (100_000, False)])
def test_ends_quietly_when_nobody_reads_any_more(lines, flush, both):
    """As behind `| head`: the status is a shell's for SIGPIPE."""
    with subprocess.Popen(
        **python(TALK.format(lines=lines, flush=flush, status=0)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if both else subprocess.PIPE,
    ) as process:
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        if not both:
            assert process.stderr.read() == b""
        assert process.wait(120) == BROKEN_PIPE_STATUS == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
@pytest.mark.parametrize(("lines", "flush"), [(3, True), (3, False), (100_000, False)])
def test_output_to_a_full_disk_ends_with_one_line(lines, flush):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            **python(TALK.format(lines=lines, flush=flush, status=0)),
            input="go",
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"
    assert done.returncode == USER_ERROR_STATUS


def test_a_status_of_its_own_says_more_than_that_nobody_reads():
    """Such as that a run is saved and to be started again."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as unread:
        program = python(TALK.format(lines=3, flush=False, status=75))
        done = subprocess.run(**program, input="go", stdout=unread, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (75, "")


def test_a_broken_connection_is_no_reader_that_left():
    done = subprocess.run(**python(BROKEN_CONNECTION), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr
