"""Several processes on this machine, on its CPU: to try what runs on several hosts.

    python -m launch.local --processes=2 --devices=4 -- python -m experiments.babistories --workdir=runs/pair ...

SIGTERM and SIGINT are handed on to every process. When one ends, the others have --grace seconds to follow before
they are killed. The exit status is that of the first that failed; 75 says that all is saved, and to start it again.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from launch import common


def main(argv: Sequence[str]) -> int:
    parser = common.Parser(__doc__)
    parser.add_argument("--processes", type=common.count, default=2, help="how many (default 2)")
    parser.add_argument("--devices", type=common.count, default=1, help="virtual CPU devices of each (default 1)")
    parser.add_argument("--port", type=common.count, help="where process 0 is met (default: a free port)")
    parser.add_argument("--grace", type=float, default=30, help="seconds between the first and the last (default 30)")
    options, command = parser.parse(argv)
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices)}
    meeting = [f"--coordinator=127.0.0.1:{options.port or free_port()}", f"--num_processes={options.processes}"]
    commands = [[*command, *meeting, f"--process_id={number}"] for number in range(options.processes)]
    if options.dry_run:
        print(*(common.shown(line, environment) for line in commands), sep="\n")
        return 0
    return supervise(commands, {**os.environ, **environment}, options.grace)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def supervise(commands: Sequence[Sequence[str]], environment: dict[str, str], grace: float) -> int:
    """Runs all at once, to the end; the first exit status that is not 0, as a shell would put it, else 0."""
    processes: list[subprocess.Popen] = []
    statuses: dict[int, int] = {}  # in the order of their ends

    def hand_on(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    try:
        # In sessions of their own: a terminal's Ctrl-C, which reaches its whole group, must not reach them twice.
        for line in commands:
            processes.append(subprocess.Popen(line, env=environment, start_new_session=True))
    except OSError as error:
        for process in processes:
            process.kill()
        common.fail(f"{commands[0][0]} cannot be started: {error.strerror}")
    deadline = float("inf")
    while len(statuses) < len(processes):
        running = {index: process for index, process in enumerate(processes) if index not in statuses}
        ended = [(index, status) for index, process in running.items() if (status := process.poll()) is not None]
        # Of those that ended since the last look, one that was killed was first: no process does that to itself, as
        # one may fail, or abort, that has lost another.
        for index, status in sorted(ended, key=lambda one: one[1] != -signal.SIGKILL):
            statuses[index] = status if status >= 0 else 128 - status
            deadline = min(deadline, time.monotonic() + grace)
            if status:
                how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                print(f"process {index} {how}", file=sys.stderr)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return next((status for status in statuses.values() if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
