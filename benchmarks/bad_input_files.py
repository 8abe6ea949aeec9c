"""The files that the cases of bad input name: text, tokens, runs and checkpoints, good ones and spoilt ones."""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from benchmarks.bad_input_cases import RUN, TOKENS
from mosaics_jax.data.stories import write_corpus
from mosaics_jax.training.checkpoint_files import measure


def make_files(files: pathlib.Path, root: pathlib.Path) -> None:
    """Fills the directory ``files``; ``root`` is that of the repository."""
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
    """From the tokens in ``files/tokens``: copies that each have one fault."""

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
    """Work directories with a copy of the run ``files/mosaic`` each, the first whole, the others with one fault."""
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
