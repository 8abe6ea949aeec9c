"""The exact commands that each launcher would run, and its errors for bad input."""

import json

import pytest

from tests.launch.launchers import refused, shown

COMMAND = ("--", "python", "-m", "experiments.generate", "--prompt=Once upon a time")


def test_local():
    meeting = "--coordinator=127.0.0.1:1234 --num_processes=2"
    assert shown("local", "--devices=4", "--port=1234", *COMMAND) == [
        "JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 "
        f"python -m experiments.generate '--prompt=Once upon a time' {meeting} --process_id={process}"
        for process in (0, 1)
    ]


def test_slurm():
    given = COMMAND[1:]
    srun = r"srun --wait=60 python -m experiments.generate --prompt=Once\ upon\ a\ time --distributed"
    assert shown("slurm", *given) == [srun]
    assert shown("slurm", *given, SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="4") == [srun]
    assert shown("slurm", *given, SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="1") == [
        rf"env JAX_LOCAL_DEVICE_IDS=0\,1\,2\,3 {srun}"
    ]


QUEUED = "gcloud compute tpus queued-resources"
ON_ALL = "gcloud compute tpus tpu-vm ssh mosaic --worker=all '--command="
TPU = {
    ("create", "--accelerator_type=v5litepod-16", "--spot"): [
        f"{QUEUED} create mosaic --node-id=mosaic --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --quiet"
    ],
    ("create", "--accelerator_type=v4-32", "--autocheckpoint", "--startup_script=my mount.sh"): [
        "gcloud alpha compute tpus queued-resources create mosaic --node-id=mosaic --accelerator-type=v4-32 "
        "--runtime-version=tpu-ubuntu2204-base --autocheckpoint-enabled "
        "'--metadata-from-file=startup-script=my mount.sh' --zone=us-west4-a --quiet"
    ],
    ("install",): [
        "git archive --output=mosaics_jax.tar.gz HEAD",
        "gcloud compute tpus tpu-vm scp mosaics_jax.tar.gz mosaic: --worker=all --zone=us-west4-a --quiet",
        f"{ON_ALL}mkdir -p mosaics_jax && tar -xzf mosaics_jax.tar.gz -C mosaics_jax && "
        "bash mosaics_jax/launch/tpu_host.sh install' --zone=us-west4-a --quiet",
    ],
    ("start",): [
        f"{ON_ALL}bash mosaics_jax/launch/tpu_host.sh start python -m experiments.generate "
        """'"'"'--prompt=Once upon a time'"'"' --distributed' --zone=us-west4-a --quiet"""
    ],
    ("watch",): [
        "gcloud compute tpus tpu-vm ssh mosaic --worker=0 '--command=tail -n 50 -F mosaics_jax/run.log' "
        "--zone=us-west4-a --quiet"
    ],
    ("stop",): [f"{ON_ALL}bash mosaics_jax/launch/tpu_host.sh stop' --zone=us-west4-a --quiet"],
    ("delete",): [f"{QUEUED} delete mosaic --force --zone=us-west4-a --quiet"],
}


@pytest.mark.parametrize("action", TPU, ids=" ".join)
def test_tpu_pod(action):
    verb, *options = action
    assert shown("tpu_pod", verb, "mosaic", "--zone=us-west4-a", *options, *COMMAND) == TPU[action]


def test_tpu_pod_keep_shows_all_that_it_may_do():
    lines = shown("tpu_pod", "keep", "mosaic", "--accelerator_type=v6e-64", *COMMAND)
    assert [line.split()[4] for line in lines if line.startswith(QUEUED)] == ["list", "delete", "create"]
    assert lines[-1].endswith("time'\"'\"' --distributed' --quiet")


GKE = ("mosaic", "--image=example.com/p/mosaics_jax:1", "--claim=shared")


def test_gke():
    first, *manifest, last = shown("gke", *GKE, "--tpu=v5e:4x4", *COMMAND, "--to=$(HOME) ${HOME}")
    assert (first, last) == ("kubectl create --filename=- << 'END'", "END")
    lines = [line.strip() for line in manifest]
    for line in (
        "name: mosaic",
        "parallelism: 4",
        "completions: 4",
        "values: [75]",
        "cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology: 4x4",
        "image: example.com/p/mosaics_jax:1",
        "google.com/tpu: 4",
        "claimName: shared",
    ):
        assert line in lines
    (words,) = (json.loads(line.removeprefix("command: ")) for line in lines if line.startswith("command: "))
    assert words == [*COMMAND[1:], "--to=$$(HOME) ${HOME}", "--distributed"]
    assert "$name" not in "".join(manifest)


REFUSED = {
    "no command": (("local",), "no command to run"),
    "no process": (("local", "--processes=0", *COMMAND), "'0' is not a whole number from 1"),
    "an unknown option": (("local", "--process=2", *COMMAND), "unrecognized arguments: --process=2"),
    "a command that is not there": (("local", "--", "no_such_program"), "no_such_program cannot be started"),
    "Slurm without a command": (("slurm",), "no command to run"),
    "Slurm's script outside of Slurm": (("slurm", "python"), "start it with sbatch"),
    "an unknown action": (("tpu_pod", "creat", "mosaic"), "invalid choice: 'creat'"),
    "no name": (("tpu_pod", "create"), "required: name"),
    "no accelerator": (("tpu_pod", "create", "mosaic"), "--accelerator_type is needed"),
    "nothing to start": (("tpu_pod", "start", "mosaic"), "no command to run"),
    "no gcloud": (("tpu_pod", "delete", "mosaic"), "gcloud is not installed"),
    "no kubectl": (("gke", *GKE, "--tpu=v5e:4x4", *COMMAND), "kubectl is not installed"),
    "no slice": (("gke", *GKE, *COMMAND), "required: --tpu"),
    "no topology": (("gke", *GKE, "--tpu=v5e", *COMMAND), "--tpu=v5e is not GENERATION:TOPOLOGY"),
    "an unknown generation": (("gke", *GKE, "--tpu=v9:2x2", *COMMAND), "one of v4, v5e, v5p, v6e, tpu7x"),
    "half a host": (
        ("gke", *GKE, "--tpu=v5e:2x1", *COMMAND),
        "v5e:2x1: 2 chips, which is no multiple of --chips_per_host=4",
    ),
    "a bad name": (
        ("gke", "Mosaic_1", *GKE[1:], "--tpu=v5e:4x4", *COMMAND),
        "argument name: 'Mosaic_1' is not up to 40",
    ),
    "a bad image": (("gke", *GKE, "--image=a b", "--tpu=v5e:4x4", *COMMAND), "--image=a b is not the name"),
}


@pytest.mark.parametrize("case", REFUSED, ids=list(REFUSED))
def test_bad_input_gets_one_line(case, tmp_path):
    arguments, expected = REFUSED[case]
    assert expected in refused(*arguments, PATH=str(tmp_path))
