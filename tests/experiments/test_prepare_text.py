"""Text prepared from the command line, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.token_files import TokenFile

ROOT = Path(__file__).parents[2]


def prepare_text(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.prepare_text", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_train_and_validation_files(tmp_path):
    write_corpus(tmp_path / "train-1.txt", seed=0, count=40)
    write_corpus(tmp_path / "train-2.txt", seed=1, count=40)
    write_corpus(tmp_path / "valid.txt", seed=2, count=10)
    result = prepare_text("--input=train-*.txt", "--vocab_size=500", "--out=data/train", "--workers=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "data/train: 80 documents" in result.stdout and "vocabulary 500 (sentencepiece)" in result.stdout
    result = prepare_text("--input=valid.txt", "--tokenizer=data/train", "--out=data/valid", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    train, valid = TokenFile.open(tmp_path / "data/train"), TokenFile.open(tmp_path / "data/valid")
    assert (train.meta.documents, valid.meta.documents) == (80, 10)
    valid.check_tokenizer(train.tokenizer())

    for flags, message in (
        (["--input=valid.txt", "--out=data/valid"], "data/valid already exists"),
        (["--input=valid.txt", "--vocab_size=9", "--out=x"], "vocab_size=9 is too small"),
        (["--input=valid.txt"], "both --input and --out are needed"),
    ):
        result = prepare_text(*flags, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train", "valid"]
    assert not (tmp_path / "x").exists()
