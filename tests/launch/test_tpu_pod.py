"""Keeping a command alive on a slice of two hosts, where gcloud is a script and each host a directory."""

import os
import subprocess

import pytest

from tests.experiments.entries import ROOT
from tests.launch.launchers import command, stand_in


@pytest.fixture
def slice_of_two(tmp_path):
    """A directory to start the launcher in; its file ``calls`` lists the calls of gcloud."""
    programs = tmp_path / "programs"
    stand_in(
        programs,
        "gcloud",
        f"""
cd {tmp_path}
case "$3 $4" in
  "queued-resources list") [ ! -e state ] || cat state; exit ;;
  "tpu-vm ssh")
    for argument; do case $argument in --command=*) line=${{argument#--command=}} ;; esac; done
    case $line in *status*) ;; *) echo "${{line##*tpu_host.sh }}" >> calls ;; esac
    for host in host0 host1; do (cd $host && HOME=$PWD sh -c "$line") || exit 1; done
    exit ;;
esac
echo "$4" >> calls
case "$4" in
  create) mkdir host0 host1; echo ACTIVE > state ;;
  delete) rm -r host0 host1 state ;;
  scp) tee host0/mosaics_jax.tar.gz host1/mosaics_jax.tar.gz < "$5" > /dev/null ;;
esac
""",
    )
    stand_in(programs, "git", f'cd {ROOT} && exec tar -czf "${{2#--output=}}" launch\n')
    stand_in(programs, "python3", "mkdir -p .venv/bin && ln -sf /bin/true .venv/bin/python\n")
    return tmp_path


def keep(directory, script):
    """Keeps ``script`` going, which each host runs with the directory as its first argument."""
    (directory / "train.sh").write_text(script)
    arguments = (
        "keep",
        "mosaic",
        "--accelerator_type=v5litepod-8",
        "--poll=0.1",
        "--",
        "bash",
        "../../train.sh",
        "a b",
    )
    return subprocess.run(
        command("tpu_pod", *arguments),
        cwd=ROOT,
        env={"PATH": f"{directory / 'programs'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


INSTALLED = ["create", "scp", "install"]
STARTED = "start bash ../../train.sh 'a b' --distributed"


def test_starts_again_after_a_signal_and_after_preemption(slice_of_two):
    # The first time all hosts are told to stop; the second time the slice is preempted; the third time all goes well.
    done = keep(
        slice_of_two,
        """
        cd ../..; echo "$1" >> words
        case $(wc -l < words) in
          1 | 2) exit 75 ;;
          3 | 4) mkdir told && sleep 0.5 && echo SUSPENDED > state; sleep 5 ;;
        esac
        """,
    )
    assert done.returncode == 0, done.stderr
    calls = (slice_of_two / "calls").read_text().splitlines()
    assert calls == [*INSTALLED, STARTED, STARTED, "delete", *INSTALLED, STARTED]
    assert (slice_of_two / "words").read_text() == 6 * "a b\n"


@pytest.mark.parametrize(("status", "starts", "says"), [(2, 1, "refuses what it was given"), (1, 4, "failed 4 times")])
def test_gives_up_on_a_command_that_fails(slice_of_two, status, starts, says):
    done = keep(slice_of_two, f"exit {status}")
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    calls = (slice_of_two / "calls").read_text().splitlines()
    assert calls == [*INSTALLED, *[STARTED] * starts]


def test_stop_lets_the_command_save(slice_of_two):
    host = slice_of_two / "host" / "launch"
    host.mkdir(parents=True)
    (host / "tpu_host.sh").write_bytes((ROOT / "launch" / "tpu_host.sh").read_bytes())

    def on_host(*arguments):
        line = ["bash", str(host / "tpu_host.sh"), *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    assert on_host("status") == "idle"
    on_host("start", "bash", "-c", "trap 'echo saved; exit 75' TERM; echo started; while :; do sleep 0.1; done")
    log = host.parent / "run.log"
    while "started" not in (log.read_text() if log.exists() else ""):
        assert on_host("status") in ("idle", "running")
    assert on_host("status") == "running"
    on_host("stop")
    while (status := on_host("status")) == "running":
        pass
    assert status == "75"
    assert log.read_text() == "started\nsaved\n"
