"""A run on a TPU slice of Cloud TPU, through gcloud, on all hosts of the slice at once.

    create, install, start     request the slice, copy the committed code to its hosts, run a command there
    status, watch, stop        print the state of slice and command; follow the log; send SIGTERM to the command
    delete                     delete the slice
    keep                       do all of this, repeatedly when the slice is preempted or maintained, until the command
                               is done; run it where it can stay that long, e.g. in tmux on a small machine

    python -m launch.tpu_pod keep NAME --accelerator_type=v5litepod-16 --spot -- python -m experiments.babistories FLAGS

Project and zone are those of ``gcloud config``, or --zone. launch/README.md describes all steps.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from launch import common

ACTIONS = ("create", "install", "start", "status", "watch", "stop", "delete", "keep")
# https://cloud.google.com/tpu/docs/runtimes
RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
OLDER_RUNTIME = "tpu-ubuntu2204-base"
ARCHIVE = "mosaics_jax.tar.gz"
ON_HOST = "bash mosaics_jax/launch/tpu_host.sh"
FAILURES = 3  # the action keep gives up after more


def main(argv: Sequence[str]) -> int:
    parser = common.Parser(__doc__)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name", type=common.name, help="name of the slice and of its queued resource")
    parser.add_argument("--zone")
    parser.add_argument("--accelerator_type", help="to create: v5litepod-16, v5p-32, v6e-64 ...")
    parser.add_argument("--runtime_version", help="to create (default: the one that suits the accelerator)")
    parser.add_argument("--spot", action="store_true", help="to create: cheaper, and can be preempted at any moment")
    parser.add_argument("--autocheckpoint", action="store_true", help="to create: SIGTERM comes before maintenance")
    parser.add_argument(
        "--startup_script", help="to create: a script that each host runs when it starts, e.g. to mount a disk"
    )
    parser.add_argument("--poll", type=float, default=60, help="for keep: seconds between two polls (default 60)")
    options, command = parser.parse(argv, needing_command=("start", "keep"))
    if options.action in ("create", "keep") and not options.accelerator_type:
        common.fail("--accelerator_type is needed, e.g. --accelerator_type=v5litepod-16")
    return getattr(Slice(options, command), options.action)()


class Slice:
    """The actions. Each runs gcloud commands, or prints them in a dry run, and returns an exit status."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]):
        self._options, self._command = options, command

    def create(self) -> int:
        options = self._options
        generation = options.accelerator_type.split("-")[0]
        flags = [
            f"--node-id={options.name}",
            f"--accelerator-type={options.accelerator_type}",
            f"--runtime-version={options.runtime_version or RUNTIMES.get(generation, OLDER_RUNTIME)}",
        ]
        if options.spot:
            flags.append("--spot")
        if options.autocheckpoint:
            flags.append("--autocheckpoint-enabled")
        if options.startup_script:
            flags.append(f"--metadata-from-file=startup-script={options.startup_script}")
        track = ["alpha"] if options.autocheckpoint else []  # the release track that has this flag
        return self._run([*track, "compute", "tpus", "queued-resources", "create", options.name, *flags])

    def install(self) -> int:
        with tempfile.TemporaryDirectory() as directory:
            file = ARCHIVE if self._options.dry_run else os.path.join(directory, ARCHIVE)
            return (
                common.run(["git", "archive", f"--output={file}", "HEAD"], self._options.dry_run)
                or self._run(["compute", "tpus", "tpu-vm", "scp", file, f"{self._options.name}:", "--worker=all"])
                or self._run(
                    self._ssh(f"mkdir -p mosaics_jax && tar -xzf {ARCHIVE} -C mosaics_jax && {ON_HOST} install")
                )
            )

    def start(self) -> int:
        return self._run(self._ssh(f"{ON_HOST} start {shlex.join([*self._command, '--distributed'])}"))

    def status(self) -> int:
        return self._run(self._list()) or self._run(self._host_status())

    def watch(self) -> int:
        return self._run(self._ssh("tail -n 50 -F mosaics_jax/run.log", worker="0"))

    def stop(self) -> int:
        return self._run(self._ssh(f"{ON_HOST} stop"))

    def delete(self) -> int:
        return self._run(["compute", "tpus", "queued-resources", "delete", self._options.name, "--force"])

    def keep(self) -> int:
        """Brings slice and command from any state to the end of the command, however often the slice is preempted."""
        if self._options.dry_run:
            print("# repeatedly, depending on the state of the slice and of its hosts, one of:")
            return self.status() or self.delete() or self.create() or self.install() or self.start()
        failures = 0
        while True:
            state = self._ask(self._list())
            if state in ([], ["SUSPENDED"], ["FAILED"]):
                if (state and self.delete()) or self.create():
                    return 1
            elif state == ["ACTIVE"]:
                hosts = set(self._ask(self._host_status()))
                if hosts == {"0"}:
                    return 0
                if "2" in hosts:
                    common.fail("the command refuses what it was given; the log, by the action watch, says why")
                # When one process ends, the others follow. No answer: the slice is being created or taken away.
                if hosts and "running" not in hosts:
                    failures += not hosts <= {str(common.TRY_AGAIN), "idle", "absent"}
                    if failures > FAILURES:
                        common.fail(f"the command failed {failures} times; the log, by the action watch, says why")
                    if "absent" not in hosts or self.install() == 0:
                        self.start()
            time.sleep(self._options.poll)

    def _list(self) -> list[str]:
        """The command that prints the state of the queued resource, or nothing if there is none."""
        only = [f"--filter=name~/{self._options.name}$", "--format=value(state.state)"]
        return ["compute", "tpus", "queued-resources", "list", *only]

    def _host_status(self) -> list[str]:
        """The command that prints a word for each host (tpu_host.sh), ``absent`` if the code is not installed."""
        return self._ssh(f"test -x mosaics_jax/.venv/bin/python && {ON_HOST} status || echo absent")

    def _ssh(self, line: str, worker: str = "all") -> list[str]:
        return ["compute", "tpus", "tpu-vm", "ssh", self._options.name, f"--worker={worker}", f"--command={line}"]

    def _gcloud(self, command: Sequence[str]) -> list[str]:
        return ["gcloud", *command, *([f"--zone={self._options.zone}"] if self._options.zone else []), "--quiet"]

    def _run(self, command: Sequence[str]) -> int:
        return common.run(self._gcloud(command), self._options.dry_run)

    def _ask(self, command: Sequence[str]) -> list[str]:
        """The words that a command prints; none if it fails."""
        done = subprocess.run(self._gcloud(command), stdout=subprocess.PIPE, text=True, check=False)
        return done.stdout.split() if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
