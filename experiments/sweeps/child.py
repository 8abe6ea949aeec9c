"""Runs an experiment until it ends, or until the process that started it ends, however that happens.

python -m experiments.sweeps.child NAME FLAGS          # standard input: a pipe that the starting process holds open
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(f"experiments.{sys.argv[0]}", run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(0, 1):  # returns nothing once the parent's end of the pipe is closed, by a kill too
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # training saves, and stops


if __name__ == "__main__":
    main()
