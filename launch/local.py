"""Several processes on this machine's CPU: a rehearsal for a run on several hosts.

    python -m launch.local --processes=2 --devices=4 -- python -m experiments.babistories --workdir=runs/pair ...

SIGTERM and SIGINT are forwarded to every process. When a process ends, the others are killed after --grace seconds.
The exit status is that of the first process that failed; 75 means that the state is saved and the same command resumes.
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
    parser.add_argument("--processes", type=common.count, default=2, help="number of processes (default 2)")
    parser.add_argument(
        "--devices", type=common.count, default=1, help="virtual CPU devices of each process (default 1)"
    )
    parser.add_argument("--port", type=common.count, help="port of process 0 (default: a free port)")
    parser.add_argument(
        "--grace",
        type=float,
        default=30,
        help="seconds between the end of the first process and the killing of others (default 30)",
    )
    options, command = parser.parse(argv)
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices)}
    coordination = [f"--coordinator=127.0.0.1:{options.port or free_port()}", f"--num_processes={options.processes}"]
    commands = [[*command, *coordination, f"--process_id={number}"] for number in range(options.processes)]
    if options.dry_run:
        print(*(common.shown(line, environment) for line in commands), sep="\n")
        return 0
    return supervise(commands, {**os.environ, **environment}, options.grace)


def free_port() -> int:
    """A port that no program listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def supervise(commands: Sequence[Sequence[str]], environment: dict[str, str], grace: float) -> int:
    """Runs all commands at once, to their ends. Returns the first exit status that is not 0, as a shell reports it."""
    processes: list[subprocess.Popen] = []
    statuses: dict[int, int] = {}  # number of the process -> exit status, in the order in which they ended

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    try:
        # Each process gets a session of its own: otherwise a Ctrl-C in the terminal would reach it twice.
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
        # Of the processes that ended since the last poll, one that was killed comes first: it is the cause, since
        # processes that lose another one fail or abort, but do not kill themselves.
        for index, status in sorted(ended, key=lambda process: process[1] != -signal.SIGKILL):
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
