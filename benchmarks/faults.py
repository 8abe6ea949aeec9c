"""Faults in real runs, one after the other: what is lost, whether the end is the same, what is printed.

    python -m benchmarks.faults --workdir=runs/faults [--kills=50] [--out=benchmarks/results/faults]

Kills `babistories` at random moments and while it writes a checkpoint, and `prepare_text` while it works; damages files
of checkpoints; fills the disk; kills one process of two; feeds NaN. After each fault the same command resumes the run,
and at the end parameters, metrics and TensorBoard points must equal, bit for bit, those of an undisturbed run. Prints a
line for each fault, then counts; --out names the files for the counts as JSON and Markdown. A campaign that is stopped
resumes, by the same command, at the beginning of the phase that it was in. The disk that fills up is a small tmpfs, for
which `unshare` needs root; without root, a limit on the size of files takes its place. 15 minutes on 2 idle CPU cores.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from benchmarks import nan_batch
from benchmarks.fault_tools import (
    DAMAGE,
    ROOT,
    STEPS,
    differences,
    ends_within,
    half_written,
    kill_group,
    kill_one_of_two,
    newest,
    output_faults,
    prepare_command,
    records_reach,
    train_command,
    wait,
)
from experiments import entry
from experiments.entry import results
from mosaics_jax.data.stories import write_corpus
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned, markdown
from mosaics_jax.training.checkpoint_files import steps_in

WORKDIR = flags.DEFINE_string("workdir", None, "directory for all runs; a campaign that was stopped goes on there")
KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs in all, without those of one process of two", lower_bound=3)
SEED = flags.DEFINE_integer("seed", 0, "seed of the moments at which faults happen")
OUT = flags.DEFINE_string("out", None, "file for the counts, without .json and .md")

STATE = "campaign.json"
RANDOM, WRITING, PREPARING = "SIGKILL, any moment", "SIGKILL, writing a checkpoint", "SIGKILL, preparing text"
DAMAGED, FULL, PAIR, NAN = "newest checkpoint damaged", "disk full", "one process of two killed", "NaN batch"
FILL = """
size=$1 disk=$2 kept=$3; shift 3
mount -t tmpfs -o size=$size none $disk || exit 99
"$@" > $kept.first 2>&1; echo $? > $kept.status
mount -o remount,size=1g $disk
"$@" > $kept.second 2>&1; status=$?
cp -r $disk $kept; exit $status
"""  # runs in a mount namespace of its own, which takes the mount with it


def main(argv: list[str]) -> int:
    if not WORKDIR.value:
        raise UserError("--workdir is needed: a directory for all runs")
    workdir = pathlib.Path(WORKDIR.value).absolute()
    if workdir.exists() and any(workdir.iterdir()) and not (workdir / STATE).exists():
        raise UserError(f"--workdir={workdir} holds something else: choose another")
    workdir.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(workdir, random.Random(SEED.value))
    preparing = max(1, KILLS.value // 6)
    campaign.phase(campaign.run_undisturbed)
    campaign.phase(campaign.kill_preparation, preparing)
    campaign.phase(campaign.kill_training, KILLS.value - preparing)
    campaign.phase(campaign.damage)
    campaign.phase(campaign.fill_the_disk)
    campaign.phase(campaign.kill_one_of_two, 3)
    campaign.phase(campaign.feed_nan)
    return campaign.report()


def say(text: str) -> None:
    print(text, flush=True)


class Campaign:
    """The phases of a campaign, with its state in campaign.json."""

    def __init__(self, workdir: pathlib.Path, moments: random.Random):
        self._workdir, self._moments = workdir, moments
        state = json.loads((workdir / STATE).read_text()) if (workdir / STATE).exists() else {}
        self._done: list[str] = state.get("done", [])  # phases
        self._seconds: float = state.get("seconds", 0.0)
        self._counts: dict[str, list[int]] = state.get(
            "counts", {}
        )  # fault -> how often it happened, how often without a complaint
        self._complaints: list[str] = state.get("complaints", [])
        self._lengths: dict[str, float] = state.get("lengths", {})  # seconds of undisturbed runs
        self._means = "tmpfs" if self._can_mount() else "limit on file sizes"
        self._reference = workdir / "undisturbed"

    def phase(self, work: Callable[..., None], *arguments: Any) -> None:
        """Calls ``work``, unless the campaign did so before it was stopped, and records that it is done."""
        if work.__name__ in self._done:
            return
        began = time.monotonic()
        work(*arguments)
        self._seconds += time.monotonic() - began
        self._done.append(work.__name__)
        names = ("done", "seconds", "counts", "complaints", "lengths")
        state = {name: getattr(self, f"_{name}") for name in names}
        staging.write_file(self._workdir / STATE, json.dumps(state).encode())

    def run_undisturbed(self) -> None:
        workdir = self._workdir
        write_corpus(workdir / "train.txt", seed=1, count=3000)
        write_corpus(workdir / "valid.txt", seed=2, count=60)
        self._lengths["preparing"] = self._undisturbed(
            prepare_command(workdir / "train.txt", workdir / "train", "--vocab_size=512")
        )
        self._undisturbed(prepare_command(workdir / "valid.txt", workdir / "valid", f"--tokenizer={workdir / 'train'}"))
        self._undisturbed(train_command(workdir, workdir / "compiling"))
        self._lengths["training"] = self._undisturbed(train_command(workdir, self._reference))
        say(", ".join(f"undisturbed {what}: {seconds:.1f} s" for what, seconds in self._lengths.items()))

    # Processes.

    def _start(self, command: Sequence[str], compiled: bool = True, **options: Any) -> subprocess.Popen:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if compiled:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(self._workdir / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
        with (self._workdir / "faults.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True, **options
            )

    def _output(self) -> str:
        """The output of the process that was started last."""
        return (self._workdir / "faults.log").read_text(errors="replace")

    def _end(self, command: Sequence[str], compiled: bool = True) -> tuple[int, str]:
        """Runs a command to its end: the exit status and the output."""
        return self._start(command, compiled).wait(600), self._output()

    def _undisturbed(self, command: Sequence[str]) -> float:
        """Seconds of a command that must succeed."""
        began = time.monotonic()
        status, output = self._end(command)
        if status:
            raise UserError(f"{' '.join(command)} ended with status {status}: {output}")
        return time.monotonic() - began

    def _can_mount(self) -> bool:
        disk = self._workdir / "disk"
        disk.mkdir(exist_ok=True)
        command = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    # What must hold.

    def _note(self, fault: str, what: str, complaints: list[str]) -> None:
        count = self._counts.setdefault(fault, [0, 0])
        count[0] += 1
        count[1] += not complaints
        self._complaints += [f"{fault} {count[0]}, {what}: {complaint}" for complaint in complaints]
        say(f"{fault} {count[0]}: {what}: {'; '.join(complaints) or 'as it should be'}")

    def _finish(self, run: pathlib.Path) -> list[str]:
        """Runs the same command to its end: what differs from the undisturbed run."""
        before = newest(run)
        status, output = self._end(train_command(self._workdir, run))
        return [*output_faults(output, before, status, expected=0), *differences(run, self._reference)]

    # Faults.

    def kill_training(self, kills: int) -> None:
        """Kills at random moments and while a checkpoint is written, in turn; after a finished run begins a new one."""
        number, killed, run = 0, 0, self._workdir / "killed-0"
        while killed < kills:
            before = newest(run)
            process = self._start(train_command(self._workdir, run))
            if killed % 2:
                self._wait_for_writing(process, run)
            else:
                wait(process, self._moments.uniform(0, 0.9 * self._lengths["training"]))
            kill_group(process)
            status = process.wait()
            if status == 0:  # it finished before the kill
                self._finish_and_note(run)
                number += 1
                run = self._workdir / f"killed-{number}"
                continue
            killed += 1
            wrong = output_faults(self._output(), before, status, -signal.SIGKILL)
            after = newest(run)
            if after < before:
                wrong.append(f"step {before} was saved, and {after} is the newest now")
            if [step for step in steps_in(run / "mosaic" / "checkpoints") if step > after]:
                wrong.append("a checkpoint under its final name is not whole")
            if run.exists() and not records_reach(run / "mosaic", after):
                wrong.append(f"the records up to step {after} have a gap or a double")
            fault = WRITING if half_written(run) else RANDOM
            self._note(fault, f"went from step {before} to {after}", wrong)
        self._finish_and_note(run)

    def _finish_and_note(self, run: pathlib.Path) -> None:
        wrong = self._finish(run)
        self._note("run finished after kills", run.name, wrong)

    def _wait_for_writing(self, process: subprocess.Popen, run: pathlib.Path) -> None:
        """Returns when the writing of one of the next few checkpoints has begun, or the process has ended."""
        seen: set[str] = set()
        number = self._moments.randint(1, 4)
        while len(seen) < number and process.poll() is None:
            seen |= {path.name for path in (run / "mosaic").glob("*/*.orbax-checkpoint-tmp*")}
            time.sleep(0.001)
        time.sleep(self._moments.uniform(0, 0.05))

    def kill_preparation(self, kills: int) -> None:
        out = self._workdir / "prepared"
        command = prepare_command(self._workdir / "train.txt", out, "--vocab_size=512")
        killed = 0
        while killed < kills:
            moment = self._moments.uniform(0.1, 0.9) * self._lengths["preparing"]
            process = self._start(command)
            wait(process, moment)
            process.kill()  # the process alone: its workers have to notice
            status = process.wait()
            if status == 0:  # it finished before the kill
                self._lengths["preparing"] = moment
                shutil.rmtree(out)
                continue
            killed += 1
            wrong = [] if status == -signal.SIGKILL else [f"ended with status {status} before it was killed"]
            if out.exists():
                wrong += self._unlike_prepared(out)
                shutil.rmtree(out)
            if not ends_within(process.pid, 60):
                wrong.append("workers outlive the process")
                kill_group(process)
            self._note(PREPARING, f"after {moment:.1f} s", wrong)
        status, output = self._end(command)
        wrong = output_faults(output, 0, status, expected=0) or self._unlike_prepared(out)
        if stale := list(self._workdir.glob(".prepared*")):
            wrong.append(f"left over: {stale}")
        self._note("text prepared after kills", out.name, wrong)

    def _unlike_prepared(self, out: pathlib.Path) -> list[str]:
        same = all(
            (out / name).read_bytes() == (self._workdir / "train" / name).read_bytes()
            for name in ("tokens.bin", "tokenizer.model", "meta.json")
        )
        return [] if same else ["the tokens differ"]

    def damage(self) -> None:
        for name, spoil in DAMAGE.items():
            run = self._workdir / f"damaged-{name.replace(' ', '-')}"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(self._reference, run)
            checkpoint = run / "mosaic" / "checkpoints" / str(STEPS)
            spoil(checkpoint)
            wrong = self._finish(run)
            if f"{STEPS} is damaged (" not in self._output():
                wrong.append("the damage is not reported")
            if not (run / "mosaic" / "damaged" / str(STEPS)).exists():
                wrong.append("the damaged checkpoint is gone")
            self._note(DAMAGED, name, wrong)

    def fill_the_disk(self) -> None:
        checkpoint = self._reference / "mosaic" / "checkpoints" / str(STEPS)
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        for share in (0.5, 1.4, 2.2, 3.0, 3.6):
            self._fill(f"training, {share} checkpoints", int(share * size), train_command, self._on_disk)
        text = self._workdir / "train.txt"

        def prepare(workdir: pathlib.Path, run: pathlib.Path) -> list[str]:
            return prepare_command(text, run / "tokens", "--vocab_size=512")

        for kilobytes in (8, 100):
            self._fill(
                f"preparing text, {kilobytes} kB",
                1000 * kilobytes,
                prepare,
                lambda out: self._unlike_prepared(out / "tokens"),
            )

    def _on_disk(self, run: pathlib.Path) -> list[str]:
        return differences(run, self._reference)

    def _fill(
        self,
        what: str,
        size: int,
        command: Callable[[pathlib.Path, pathlib.Path], list[str]],
        compare: Callable[[pathlib.Path], list[str]],
    ) -> None:
        """Runs on a disk of ``size`` bytes, which must exit with one line; then, with room on the disk, to the end."""
        kept = self._workdir / f"full-{what.replace(' ', '-').replace(',', '')}"
        if self._means == "tmpfs":
            disk = self._workdir / "disk"
            line = command(self._workdir, disk)
            status = self._start(
                ["unshare", "-m", "bash", "-c", FILL, "bash", str(size), str(disk), str(kept), *line]
            ).wait(600)
            first = int(kept.with_name(kept.name + ".status").read_text())
            full, after = (kept.with_name(f"{kept.name}.{time}").read_text() for time in ("first", "second"))
        else:
            line = command(self._workdir, kept)
            limited = ["bash", "-c", f'ulimit -f {max(1, size // 4096)}; exec "$@"', "bash", *line]
            first, full = self._end(limited)
            status, after = self._end(line)
        if first == 0:
            say(f"{FULL}: {what}: it was not full")
            return
        errors = [text for text in full.splitlines() if text.startswith("error: ")]
        wrong = output_faults(full, 0, first, expected=2)
        if len(errors) != 1 or not any(part in errors[0] for part in ("room", "space", "written", "write")):
            wrong.append(f"printed: {full[-1000:]}")
        wrong += output_faults(after, 0, status, expected=0) or compare(kept)
        self._note(FULL, f"{what}: {errors[-1] if errors else ''}", wrong)

    def kill_one_of_two(self, kills: int) -> None:
        def pair(run: pathlib.Path) -> list[str]:
            launcher = [sys.executable, "-m", "launch.local", "--processes=2", "--devices=1", "--grace=10", "--"]
            return [*launcher, *train_command(self._workdir, run), "--steps=90"]

        reference, run = self._workdir / "pair", self._workdir / "pair-killed"
        status, output = self._end(pair(reference), compiled=False)
        if status:
            self._note(PAIR, "undisturbed", [output[-1000:]])
            return
        for _ in range(kills):
            before = newest(run)
            process = self._start(pair(run), compiled=False)
            until = before + 15 * self._moments.randint(1, 2)  # the step of a checkpoint
            while newest(run) < until and process.poll() is None:
                time.sleep(0.02)
            time.sleep(self._moments.uniform(0, 0.5))
            victim = self._moments.randrange(2)
            kill_one_of_two(process, victim)
            status, output = process.wait(120), self._output()
            if status == 0:  # it finished before the kill
                break
            wrong = [] if f"process {victim} was ended by SIGKILL" in output else [f"printed: {output[-1000:]}"]
            if status != 128 + signal.SIGKILL:
                wrong.append(f"exit status {status}")
            after = newest(run)
            if after < before:
                wrong.append(f"step {before} was saved, and {after} is the newest now")
            self._note(PAIR, f"went from step {before} to {after}", wrong)
        before = newest(run)
        status, output = self._end(pair(run), compiled=False)
        wrong = [*output_faults(output, before, status, expected=0), *differences(run, reference)]
        self._note("pair finished after kills", run.name, wrong)

    def feed_nan(self) -> None:
        shutil.rmtree(self._workdir / "nan", ignore_errors=True)
        for what, wrong in nan_batch.cases(self._workdir / "nan"):
            self._note(NAN, what, wrong)

    def report(self) -> int:
        rows = [("fault", "times", "as it should be"), *((name, *map(str, n)) for name, n in self._counts.items())]
        say("\n" + aligned(rows))
        kills = sum(self._counts.get(name, [0])[0] for name in (RANDOM, WRITING, PREPARING, PAIR))
        machine = results.machine()
        summary = f"{kills} SIGKILLs; disk full by {self._means}; {self._seconds / 60:.0f} min on {machine['device']}"
        say(f"{summary}; {len(self._complaints)} complaints")
        for complaint in self._complaints:
            say(complaint)
        if OUT.value:
            counts = {
                "machine": {**machine, "date": time.strftime("%Y-%m-%d")},
                "seconds": round(self._seconds),
                "disk full by": self._means,
                "faults": {name: {"times": n[0], "as it should be": n[1]} for name, n in self._counts.items()},
                "complaints": self._complaints,
            }
            staging.write_file(f"{OUT.value}.json", (json.dumps(counts, indent=1) + "\n").encode())
            staging.write_file(f"{OUT.value}.md", f"{markdown(rows)}\n{summary}.\n".encode())
        return 1 if self._complaints else 0


if __name__ == "__main__":
    entry.run(main)
