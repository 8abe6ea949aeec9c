"""Bad input, by entry point: command lines, in which {files} is the directory that ``make_files`` fills."""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.training.checkpoint_files import measure

RUN = "--flagfile=experiments/flags/smoke.flags --model=mosaic --steps=2 --samples=0"
TOKENS = "--train_files={files}/tokens --eval_files={files}/tokens"
STORIES = f"{RUN} --workdir={{files}}/new {TOKENS}"
GENERATE = "--checkpoint={files}/run --prompt=Once"
REGBENCH = "--flagfile=experiments/flags/regbench_smoke.flags --workdir={files}/new"
MQAR = "--flagfile=experiments/flags/mqar_smoke.flags --workdir={files}/new"
MOONS = "--flagfile=experiments/flags/three_moons_smoke.flags --workdir={files}/new"
COMMAND = "-- python -m experiments.babistories"
GKE = "launch.gke mosaic --image=example.com/p/mosaics_jax:1 --claim=shared"

# Module, what all its cases share, and what is bad in each. A value with blanks is written with _ for them.
CASES: list[tuple[str, str, list[str]]] = [
    ("experiments.babistories", "", ["", "--workdir=gs://bucket/run", "--workdir={files}/train.txt"]),
    (
        "experiments.babistories",
        "--workdir={files}/new",
        ["train", "--n_layr=3", "--steps=abc", "--flagfile=none.flags"],
    ),
    (
        "experiments.babistories",
        f"{RUN} --workdir={{files}}/new",
        [
            "--train_files={files}/train.txt",
            "--train_files={files}/none.txt --eval_files={files}/valid.txt",
            "--train_files={files}/none*.txt --eval_files={files}/valid.txt",
            "--train_files={files} --eval_files={files}/valid.txt",
            "--train_files={files}/empty.txt --eval_files={files}/valid.txt",
            "--train_files={files}/binary.txt --eval_files={files}/valid.txt",
            "--train_files={files}/cut.txt.gz --eval_files={files}/valid.txt",
            "--train_files={files}/bad.jsonl --eval_files={files}/valid.txt",
            "--train_files={files}/cut_tokens --eval_files={files}/tokens",
            "--train_files={files}/high_tokens --eval_files={files}/tokens",
            "--train_files={files}/no_meta --eval_files={files}/tokens",
            "--train_files={files}/other_version --eval_files={files}/tokens",
            "--train_files={files}/no_tokenizer --eval_files={files}/tokens",
            "--train_files={files}/other_tokens --eval_files={files}/tokens",
            "--train_files={files}/train.txt --eval_files={files}/valid.txt --vocab_size=60000",
            "--train_files={files}/train.txt --eval_files={files}/valid.txt --tokenizer={files}/none.model",
            "--train_files={files}/train.txt --eval_files={files}/valid.txt --tokenizer={files}/train.txt",
            "--train_files={files}/train.txt --eval_files={files}/valid.txt --cache_dir={files}/train.txt/cache",
        ],
    ),
    (
        "experiments.babistories",
        STORIES,
        [
            "--vocab_size=64",
            "--context_length=9000000",
            "--context_length=0",
            "--batch_size=-1",
            "--eval_tokens=-1",
            "--model=mamba",
            "--n_head=5",
            "--n_head=0",
            "--n_layer=0",
            "--n_embd=-32",
            "--pmem_size=-1",
            "--pmem_count=0",
            "--key_taps=0",
            "--ic_dropout=1.5",
            "--variant=mega",
            "--dtype=int8",
            "--steps=0",
            "--log_every=0",
            "--keep_checkpoints=0",
            "--checkpoint_every=-1",
            "--checkpoint_every_minutes=-1",
            "--keep_every_minutes=-1",
            "--seed=-1",
            "--samples=-1",
            "--learning_rate=-1",
            "--learning_rate=nan",
            "--beta2=1",
            "--epsilon=0",
            "--skip_spikes=0.5",
            "--accumulate=0",
            "--accumulate=3",
            "--mesh=data:3",
            "--mesh=banana:1",
            "--mesh=data:x",
            "--mesh=data:-1,fsdp:-1",
            "--mesh=data:1,data:1",
            "--mesh=tensor:0",
            "--coordinator=here --num_processes=2 --process_id=0",
            "--coordinator=127.0.0.1:1234",
            "--num_processes=2",
            "--distributed",
        ],
    ),
    (
        "experiments.babistories",
        f"{RUN} {TOKENS}",
        [
            "--workdir={files}/run --n_embd=64",
            "--workdir={files}/run_of_format_9",
            "--workdir={files}/damaged_run",
            "--workdir={files}/run_without_metrics",
            "--workdir={files}/run_with_bad_metrics",
            "--workdir=/proc/new",
        ],
    ),
    ("experiments.prepare_text", "", ["", "--input={files}/train.txt", "--workers=0 --input=a --out=b"]),
    (
        "experiments.prepare_text",
        "--out={files}/new_tokens",
        [
            "--input={files}/none.txt",
            "--input={files}/empty.txt",
            "--input={files}/binary.txt",
            "--input={files}/cut.txt.gz",
            "--input={files}/bad.jsonl",
            "--input={files}/train.txt --vocab_size=10",
            "--input={files}/train.txt --vocab_size=60000",
            "--input={files}/train.txt --vocab_size=many",
            "--input={files}/train.txt --tokenizer={files}/none.model",
            "--input={files}/train.txt --tokenizer={files}/train.txt",
            "--input={files}/train.txt --tokenizer={files}/no_tokenizer",
        ],
    ),
    (
        "experiments.prepare_text",
        "--input={files}/train.txt --vocab_size=512 --workers=1",
        [
            "--out={files}/tokens",
            "--out={files}/train.txt",
            "--out={files}/run --overwrite",
            "--out={files}/train.txt/tokens",
            "--out=/proc/tokens",
        ],
    ),
    (
        "experiments.generate",
        "",
        ["", "--checkpoint={files}/nowhere", "--checkpoint={files}", "--checkpoint={files}/tokens"],
    ),
    (
        "experiments.generate",
        "--prompt=Once",
        [
            "--checkpoint={files}/damaged_run",
            "--checkpoint={files}/run_of_format_9",
            "--checkpoint={files}/run_without_tokenizer",
            "--checkpoint={files}/run_with_other_tokenizer",
            "--checkpoint={files}/run_without_best --which=best",
            "--checkpoint={files}/run_of_another_model",
        ],
    ),
    (
        "experiments.generate",
        GENERATE,
        [
            "--prompt=",
            "--prompt_file={files}/none.txt",
            "--prompt_file={files}/empty.txt",
            "--prompt_file={files}/binary.txt",
            "--temperature=-1",
            "--temperature=nan",
            "--top_p=1.5",
            "--top_k=-2",
            "--beam=-1",
            "--max_tokens=0",
            "--which=worst",
            "story",
        ],
    ),
    (
        "experiments.convert",
        "",
        [
            "",
            "--from_torch={files}/weights.npz",
            "--from_torch={files}/none.npz --out={files}/new",
            "--from_torch={files}/garbage.npz --out={files}/new",
            "--from_torch={files}/objects.npz --out={files}/new",
            "--from_torch={files}/other.npz --out={files}/new",
            "--from_torch={files}/garbage.pt --out={files}/new",
            "--from_torch={files}/weights.npz --out={files}/tokens",
            "--from_torch={files}/weights.npz --out={files}/new --tokenizer={files}/none.model",
            "--from_torch={files}/weights.npz --out={files}/train.txt/new",
            "--to_torch={files}/weights.npz --checkpoint={files}/run",
            "--to_torch={files}/new.npz --checkpoint={files}/nowhere",
            "--to_torch={files}/nowhere/new.npz --checkpoint={files}/run",
            "--to_torch={files}/new.npz --checkpoint={files}/damaged_run",
            "--gelu=square",
        ],
    ),
    (
        "experiments.three_moons",
        MOONS,
        [
            "--workdir=",
            "--heads=two",
            "--heads=1,1",
            "--heads=2",
            "--heads=4",
            "--heads=0",
            "--seeds=0",
            "--starts=0",
            "--moons=1",
            "--moons=9",
            "--context_length=10",
            "--context_length=20000",
            "--batch_size=0",
            "--sharpness=0",
            "--train_periods=1,2",
            "--held_out_periods=1,-2,3",
            "--held_out_periods=a,b,c",
            "--observer=moon",
        ],
    ),
    (
        "experiments.disentanglement",
        "--workdir={files}/new --steps=2",
        ["--workdir=", "--moon_counts=two", "--moon_counts=1", "--moon_counts=", "--moon_counts=9", "--seeds=0"],
    ),
    (
        "experiments.regbench",
        REGBENCH,
        [
            "--workdir=",
            "--model=perceptron",
            "--num_train=0",
            "--epochs=0",
            "--steps=-1",
            "--warmup_share=2",
            "--batch_size=0",
            "--workers=0",
            "--n_head=3",
            "--max_words=0",
            "--cache_dir={files}/train.txt",
            "--workdir={files}/bad_results",
            "--workdir={files}/other_results",
            "--model=transformer --context_length=8",
            "--num_train=many",
        ],
    ),
    (
        "experiments.mqar",
        MQAR,
        [
            "--workdir=",
            "--model=perceptron",
            "--num_pairs=0",
            "--context_length=15",
            "--context_length=4",
            "--vocab_size=8",
            "--power=0",
            "--num_test=0",
            "--batch_size=0",
            "--workdir={files}/other_results",
        ],
    ),
    (
        "experiments.sweep",
        "--workdir={files}/new",
        [
            "--workdir= --grid=model=mosaic",
            "",
            "--grid=model",
            "--grid=model=mosaic;model=mamba",
            "--grid=a:b=1",
            "--grid=workdir=a",
            "--experiment=none",
            "--grid=model=mosaic --base=none.flags",
            "--grid=model=mosaic --base={files}/bad.flags",
            "--grid=model=mosaic --at_once=0",
            "--grid=modl=mosaic",
            "--norun",
        ],
    ),
    (
        "experiments.ablations",
        "--workdir={files}/new",
        [
            "--workdir=",
            "--variants=none",
            "--variants=",
            "--benchmarks=none",
            "--regbench_base=none.flags",
            "--regbench_base={files}/bad.flags",
            "--mqar_base={files}/no_width.flags",
            "--at_once=0",
        ],
    ),
    (
        "launch.local",
        "",
        ["", f"--processes=0 {COMMAND}", f"--process=2 {COMMAND}", f"--grace=long {COMMAND}", "-- no_such_program"],
    ),
    (
        "launch.tpu_pod",
        "",
        ["creat mosaic", "create", "create mosaic", "start mosaic", f"create Mosaic_1 {COMMAND}", "delete mosaic"],
    ),
    (
        GKE,
        "",
        [
            COMMAND,
            f"--tpu=v5e {COMMAND}",
            f"--tpu=v9:2x2 {COMMAND}",
            f"--tpu=v5e:2x1 {COMMAND}",
            "--tpu=v5e:4x4",
            f"--tpu=v5e:4x4 --image=a;b {COMMAND}",
            f"--tpu=v5e:4x4 --chips_per_host=0 {COMMAND}",
            f"--tpu=v5e:4x4 {COMMAND}",
        ],
    ),
    ("launch/slurm.sh", "", ["", "python"]),
    ("benchmarks.decode", "", ["--new_tokens=0", "--new_tokens=216", "--repeats=none", "fast"]),
    ("benchmarks.faults", "", ["", "--workdir={files}/run", "--kills=1 --workdir={files}/new"]),
]


def commands() -> list[list[str]]:
    """Every case as module or script, and arguments."""
    return [[*f"{module} {common} {bad}".split()] for module, common, cases in CASES for bad in cases]


def make_files(files: pathlib.Path, root: pathlib.Path) -> None:
    """Text, tokens, runs and checkpoints, good ones and what can be wrong with them."""
    write_corpus(files / "train.txt", seed=1, count=60)
    write_corpus(files / "valid.txt", seed=2, count=6)
    (files / "empty.txt").touch()
    (files / "binary.txt").write_bytes(bytes(range(256)))
    (files / "cut.txt.gz").write_bytes(gzip.compress((files / "train.txt").read_bytes())[:200])
    (files / "bad.jsonl").write_text('{"text": "once"}\n{"text": 3}\n')
    (files / "bad.flags").write_text("--model\nmosaic\n")
    (files / "no_width.flags").write_text("--model=mosaic\n")

    def run(module: str, arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments.format(files=files).split()]
        subprocess.run(command, cwd=root, check=True, capture_output=True)

    prepare = "--workers=1 --input={files}/train.txt --out={files}/"
    run("experiments.prepare_text", f"{prepare}tokens --vocab_size=512")
    run("experiments.prepare_text", f"{prepare}other_tokens --vocab_size=520")
    spoil_tokens(files)
    run("experiments.babistories", f"{RUN} --workdir={{files}}/whole {TOKENS}")
    shutil.move(files / "whole" / "mosaic", files / "mosaic")
    spoil_runs(files)
    run("experiments.convert", "--to_torch={files}/weights.npz --checkpoint={files}/run")
    (files / "garbage.npz").write_bytes(b"PK garbage")
    (files / "garbage.pt").write_bytes(b"garbage")
    np.savez(files / "other.npz", x=np.zeros(3))
    np.savez(files / "objects.npz", x=np.array([{}], dtype=object))
    for name, text in (("bad_results", "{"), ("other_results", '{"experiment": "none", "version": 1}')):
        (files / name).mkdir()
        (files / name / "results.json").write_text(text)


def spoil_tokens(files: pathlib.Path) -> None:
    def meta(tokens: pathlib.Path, **changes: object) -> None:
        path = tokens / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    for name in ("cut_tokens", "high_tokens", "no_meta", "other_version", "no_tokenizer"):
        shutil.copytree(files / "tokens", files / name)
    (files / "cut_tokens" / "tokens.bin").write_bytes((files / "tokens" / "tokens.bin").read_bytes()[:-7])
    meta(files / "high_tokens", vocab_size=300)
    (files / "no_meta" / "meta.json").write_text("{}")
    meta(files / "other_version", version=99)
    (files / "no_tokenizer" / "tokenizer.model").unlink()


def spoil_runs(files: pathlib.Path) -> None:
    """From the run in ``files/mosaic``: WORKDIRs that hold it, each with something wrong but the first."""
    for name in (
        "run",
        "damaged_run",
        "run_of_format_9",
        "run_of_another_model",
        "run_without_tokenizer",
        "run_with_other_tokenizer",
        "run_without_best",
        "run_without_metrics",
        "run_with_bad_metrics",
    ):
        shutil.copytree(files / "mosaic", files / name / "mosaic")
    shutil.rmtree(files / "mosaic")

    def meta(name: str, **changes: object) -> None:
        checkpoint = files / name / "mosaic" / "checkpoints" / "2"
        path = checkpoint / "meta" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        (checkpoint / "files.json").write_text(json.dumps(measure(checkpoint)))

    for parameters in (files / "damaged_run").glob("mosaic/checkpoints/*/params/**/d/*"):
        parameters.write_bytes(b"")
    meta("run_of_format_9", format=9)
    another = {"experiment": "regbench/mamba", "task": {"model": {"name": "mamba"}}}
    (files / "run_of_another_model" / "mosaic" / "config.json").write_text(json.dumps(another))
    shutil.rmtree(files / "run_without_tokenizer" / "mosaic" / "tokenizer")
    shutil.rmtree(files / "run_with_other_tokenizer" / "mosaic" / "tokenizer")
    shutil.copytree(files / "other_tokens", files / "run_with_other_tokenizer" / "mosaic" / "tokenizer")
    shutil.rmtree(files / "run_without_best" / "mosaic" / "best")
    (files / "run_without_metrics" / "mosaic" / "metrics.jsonl").unlink()
    (files / "run_with_bad_metrics" / "mosaic" / "metrics.jsonl").write_text("broken\n\n")
