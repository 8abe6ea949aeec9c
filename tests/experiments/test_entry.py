"""What every entry point does with what it cannot raise."""

import subprocess
import sys

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


def test_writes_that_end_after_a_failed_save_print_nothing():
    """As on a full disk, where the first write to fail ends the wait for the others. Everything else is printed."""
    done = subprocess.run(
        [sys.executable, "-c", LATE_WRITE], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Event loop is closed" not in done.stderr
    assert "RuntimeError: another one" in done.stderr
