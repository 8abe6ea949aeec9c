"""Several real processes on this machine."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mosaics_jax.data.documents import read_documents
from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.token_files import prepare
from mosaics_jax.data.tokenizers import train_sentencepiece
from mosaics_jax.training.metrics import read_metrics
from tests.experiments.entries import ROOT, SMOKE, environment
from tests.experiments.entries import run as run_entry
from tests.launch.launchers import command, run

PROCESS = "import os, signal, sys, time; first = sys.argv[3].endswith('=0')\n"


@pytest.mark.parametrize(
    ("program", "status", "told"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit(75)", 75, "process 1 ended with status 75"),
        ("sys.exit(3) if first else time.sleep(60)", 3, "process 0 ended with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL) if first else time.sleep(60)", 137, "process 0 was ended by SIGKILL"),
        # One that does not end is an error too.
        ("sys.exit(0) if first else time.sleep(60)", 137, "process 1 was ended by SIGKILL"),
    ],
)
def test_exit_status_is_that_of_the_first_that_fails(program, status, told):
    done = run("local", "--grace=0.5", "--", sys.executable, "-c", PROCESS + program)
    assert done.returncode == status, done.stderr
    assert told in done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the launcher's state is read from /proc")
def test_a_kill_comes_before_the_failures_that_it_causes():
    """Process 1 is killed and process 0 fails while the launcher is stopped, so that it sees both at once."""
    program = PROCESS + (
        "import subprocess; launcher = os.getppid()\n"
        "if not first: os.kill(launcher, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGKILL)\n"
        "while open(f'/proc/{launcher}/stat').read().rpartition(') ')[2][0] != 'T': time.sleep(0.01)\n"
        "ended = f'grep -q State:.Z /proc/{os.getpid()}/status'\n"
        "subprocess.Popen(['sh', '-c', f'until {ended}; do sleep 0.01; done; kill -CONT {launcher}'])\n"
        "sys.exit(1)"
    )
    done = run("local", "--", sys.executable, "-c", program)
    assert done.returncode == 137, done.stderr
    assert done.stderr == "process 1 was ended by SIGKILL\nprocess 0 ended with status 1\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signals_are_handed_on_to_all(number):
    program = PROCESS + (
        "def stop(number, frame): os.write(1, b'%d\\n' % number); sys.exit(75)\n"
        f"signal.signal({int(number)}, stop); os.write(1, b'ready\\n'); time.sleep(60)"
    )
    line = command("local", "--processes=3", "--", sys.executable, "-c", program)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as launcher:
        assert [launcher.stdout.readline() for _ in range(3)] == ["ready\n"] * 3
        launcher.send_signal(number)
        assert launcher.stdout.read() == f"{int(number)}\n" * 3
    assert launcher.returncode == 75


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Flags that name small token files."""
    directory = tmp_path_factory.mktemp("text")
    for name, seed, count in (("train", 1, 60), ("valid", 2, 6)):
        write_corpus(directory / f"{name}.txt", seed, count)
    tokenizer = train_sentencepiece(read_documents([directory / "train.txt"]), 512)
    for name in ("train", "valid"):
        prepare([directory / f"{name}.txt"], tokenizer, directory / name, progress=False)
    return f"--train_files={directory / 'train'}", f"--eval_files={directory / 'valid'}"


def test_two_processes_train_as_one_does(tokens, tmp_path):
    arguments = (f"--flagfile={SMOKE}", "--model=mosaic", *tokens)
    alone = run_entry("babistories", *arguments, f"--workdir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr

    # Without the compilation cache, which serves the first process only: gloo waits 30 s for the other, no more.
    variables = {name: value for name, value in environment().items() if not name.startswith("JAX_")}
    start = ("--processes=2", "--devices=2", "--", sys.executable, "-m", "experiments.babistories", *arguments)
    line = command("local", *start, f"--workdir={tmp_path / 'pair'}")
    pair = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=240)
    assert pair.returncode == 0, pair.stderr
    assert "devices: 4 x cpu, mesh data:4" in pair.stdout
    assert pair.stdout.count("step 6/6  loss") == pair.stdout.count("curves: ") == 1  # the first speaks for all

    def losses(name, kind):
        return [record["loss"] for record in read_metrics(tmp_path / name / "mosaic") if record["kind"] == kind]

    for kind, number in (("train", 6), ("eval", 2)):
        assert len(losses("pair", kind)) == number
        np.testing.assert_allclose(losses("pair", kind), losses("alone", kind), rtol=1e-5)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["mosaic"] for name in ("alone", "pair"))
    for measured in ("params", "train_loss", "val_loss", "steps"):
        assert two[measured] == pytest.approx(one[measured], rel=1e-5)
    for config in ("model_config", "data_config", "optimizer_config", "loop_config"):
        assert two[config] == one[config]


ONE_FAILS = """
import sys, time
import jax
from jax.experimental import multihost_utils
from experiments import entry
from mosaics_jax.errors import UserError

def main(argv):
    if jax.process_index() == 0:
        raise UserError("the disk is full")
    multihost_utils.sync_global_devices("for ever")

entry.run(main)
"""


def test_a_process_that_fails_does_not_wait_for_the_other():
    done = subprocess.run(
        command("local", "--", sys.executable, "-c", ONE_FAILS),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2
    assert "error: process 0: the disk is full" in done.stderr.splitlines()
