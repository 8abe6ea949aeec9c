"""Token directories are complete or absent; damage and a wrong tokenizer are detected."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mosaics_jax.data import token_files
from mosaics_jax.data.stories import stories, write_corpus
from mosaics_jax.data.token_files import (
    TokenFile,
    cached_sentencepiece,
    cached_tokens,
    describe_files,
    is_token_directory,
    prepare,
)
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    write_corpus(path, seed=3, count=60)
    return str(path)


@pytest.fixture
def prepared(corpus, sentencepiece, tmp_path):
    return prepare([corpus], sentencepiece, tmp_path / "tokens")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_document_and_its_end(corpus, tokenizer, tmp_path):
    token_file = prepare([corpus], tokenizer, tmp_path / "tokens")
    ends = np.flatnonzero(token_file.tokens == tokenizer.end_of_text)
    documents = [tokenizer.decode(ids[:-1].tolist()) for ids in np.split(token_file.tokens, ends + 1)[:-1]]
    assert documents == list(stories(3, 60))
    assert ends[-1] == len(token_file.tokens) - 1
    meta = token_file.meta
    assert (meta.tokens, meta.documents, meta.dtype) == (len(token_file.tokens), 60, "uint16")
    assert meta.sources[0].path == corpus and meta.sources[0].bytes == os.path.getsize(corpus)
    assert token_file.tokenizer().fingerprint() == tokenizer.fingerprint()


def test_number_of_processes_changes_nothing(corpus, sentencepiece, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "CHUNK_CHARS", 3000)  # many chunks for each worker
    one = prepare([corpus], sentencepiece, tmp_path / "one", workers=1)
    two = prepare([corpus], sentencepiece, tmp_path / "two", workers=2)
    assert contents(one.directory) == contents(two.directory)


def test_large_vocabularies_take_four_bytes(corpus, gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2, "vocab_size", 70000)
    token_file = prepare([corpus], gpt2, tmp_path / "tokens")
    assert token_file.meta.dtype == "uint32"
    assert token_file.tokens.dtype == np.dtype("<u4")
    assert gpt2.decode(token_file.tokens[:50].tolist()) in next(stories(3, 1))


def test_existing_output_is_kept_or_replaced(corpus, gpt2, prepared, tmp_path):
    with pytest.raises(UserError, match="already exists"):
        prepare([corpus], gpt2, prepared.directory)
    assert prepare([corpus], gpt2, prepared.directory, overwrite=True).meta.tokenizer == "gpt2"
    (tmp_path / "other").mkdir()
    assert prepare([corpus], gpt2, tmp_path / "other").meta.documents == 60  # an empty directory is no loss
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else than token files"):
        prepare([corpus], gpt2, tmp_path / "mine", overwrite=True)
    assert contents(tmp_path / "mine") == {"thesis.tex": b"years of work"}
    assert {path.name for path in tmp_path.iterdir()} == {"tokens", "other", "mine"}


def test_bad_text_leaves_nothing(corpus, sentencepiece, tmp_path):
    broken = tmp_path / "broken.txt"
    broken.write_text('"one"\n"tw')
    for workers in (1, 2):
        with pytest.raises(UserError, match="line 2"):
            prepare([corpus, str(broken)], sentencepiece, tmp_path / "tokens", workers)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.txt"]


def test_unwritable_output(corpus, sentencepiece, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "tokens", Path("/proc/tokens")):
        with pytest.raises(UserError, match="cannot be written"):
            prepare([corpus], sentencepiece, out)


ENDLESS_RUN = """
import itertools, sys
from mosaics_jax.data import token_files, tokenizers
if __name__ == "__main__":
    token_files.CHUNK_CHARS = 1000
    token_files.read_documents = lambda files, on_read: itertools.repeat("a story without end")
    corpus, directory = sys.argv[1:]
    token_files.prepare([corpus], tokenizers.load_tokenizer(directory), directory + "/tokens", workers=2)
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing(corpus, sentencepiece, tmp_path, kill):
    """The run is killed while its workers tokenize. The workers end too, and the next run removes what is left."""
    sentencepiece.save(tmp_path)
    (tmp_path / "run.py").write_text(ENDLESS_RUN)
    run = subprocess.Popen(
        [sys.executable, "run.py", corpus, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while not any(path.stat().st_size for path in tmp_path.glob(".tokens.*.tmp/tokens.bin")):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(kill)
        run.communicate(timeout=60)  # the pipe is closed when the last worker has ended
    finally:
        run.kill()
    assert run.returncode != 0
    assert not (tmp_path / "tokens").exists()
    assert len(list(tmp_path.glob(".tokens.*"))) == (1 if kill == signal.SIGKILL else 0)
    prepare([corpus], sentencepiece, tmp_path / "tokens")
    assert {path.name for path in tmp_path.iterdir()} == {"run.py", "tokenizer.model", "tokens"}


def test_the_temporary_directory_of_a_live_run_is_kept(corpus, sentencepiece, tmp_path):
    with pytest.raises(FileExistsError), staging.directory(tmp_path / "tokens") as other:
        prepare([corpus], sentencepiece, tmp_path / "tokens")
        assert other.is_dir()
    assert not other.exists()
    assert TokenFile.open(tmp_path / "tokens").meta.documents == 60


def edit_meta(directory: Path, **fields) -> None:
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | fields))


def test_damaged_token_files_are_refused(prepared, sentencepiece):
    tokens, meta = prepared.directory / "tokens.bin", prepared.directory / "meta.json"
    good = contents(prepared.directory)

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            TokenFile.open(prepared.directory)
        assert "\n" not in str(caught.value)
        for name, content in good.items():
            (prepared.directory / name).write_bytes(content)

    tokens.write_bytes(good["tokens.bin"][:-2])
    refused(r"damaged token file \(\d+ bytes, expected \d+\)")
    tokens.write_bytes(good["tokens.bin"][:-2] + b"\x00\x00")
    refused("SHA-256")
    tokens.write_bytes(good["tokens.bin"][:-2] + (600).to_bytes(2, "little"))
    refused("token id 600 is past the vocabulary of 600")
    tokens.unlink()
    refused("tokens.bin is missing")
    meta.write_bytes(good["meta.json"][:-30])
    refused("meta.json: damaged")
    edit_meta(prepared.directory, version=99)
    refused("version 99")
    for field, value in (("dtype", "float32"), ("tokens", "many"), ("surprise", 1), ("sources", [{}])):
        edit_meta(prepared.directory, **{field: value})
        refused("meta.json: damaged")
    edit_meta(prepared.directory, format="something else")
    refused("not the meta.json of token files")
    meta.unlink()
    refused("no token files there")
    assert TokenFile.open(prepared.directory).meta == prepared.meta


def test_another_tokenizer_is_refused(prepared, sentencepiece, gpt2):
    prepared.check_tokenizer(sentencepiece)
    with pytest.raises(UserError, match="made with another tokenizer"):
        prepared.check_tokenizer(gpt2)
    (prepared.directory / "tokenizer.model").unlink()
    gpt2.save(prepared.directory)
    with pytest.raises(UserError, match="made with another tokenizer"):
        prepared.tokenizer()


def test_text_is_tokenized_once(corpus, sentencepiece, gpt2, tmp_path, monkeypatch):
    first = cached_tokens(describe_files([corpus]), sentencepiece, tmp_path / "cache")
    assert is_token_directory(first.directory) and not is_token_directory(tmp_path)
    copy = shutil.copy(corpus, tmp_path / "copy.txt")
    with monkeypatch.context() as patch:
        patch.setattr(token_files, "_write_tokens", None)  # would fail if it were called
        assert cached_tokens(describe_files([copy]), sentencepiece, tmp_path / "cache").directory == first.directory
    assert cached_tokens(describe_files([corpus]), gpt2, tmp_path / "cache").directory != first.directory
    copy.write_text('"another text"')
    assert cached_tokens(describe_files([copy]), sentencepiece, tmp_path / "cache").meta.documents == 1
    (first.directory / "tokens.bin").write_bytes(b"damaged")
    assert cached_tokens(describe_files([corpus]), sentencepiece, tmp_path / "cache").meta == first.meta


def test_tokenizer_is_trained_once(corpus, tmp_path, monkeypatch):
    first = cached_sentencepiece(describe_files([corpus]), 400, tmp_path)
    monkeypatch.setattr(token_files, "train_sentencepiece", None)
    assert cached_sentencepiece(describe_files([corpus]), 400, tmp_path).fingerprint() == first.fingerprint()
