"""Corpora are opened from file names: raw text, prepared tokens and built-in stories; caches are found again."""

import tarfile
from pathlib import Path

import pytest

from mosaics_jax.data import corpus, token_files
from mosaics_jax.data.corpus import CorpusConfig, open_corpus
from mosaics_jax.data.stories import write_corpus
from mosaics_jax.errors import UserError


@pytest.fixture
def text(tmp_path):
    write_corpus(tmp_path / "train.txt", 1, 60)
    write_corpus(tmp_path / "valid.txt", 2, 6)
    return {"train_files": str(tmp_path / "train.txt"), "eval_files": str(tmp_path / "valid.txt")}


def test_raw_text_is_tokenized_once(text, tmp_path):
    first = open_corpus(CorpusConfig(**text, vocab_size=400), tmp_path / "cache")
    assert (first.vocab_size, first.tokenizer.vocab_size) == (400, 400)
    assert first.train.meta.documents == 60
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    again = open_corpus(CorpusConfig(**text, vocab_size=400), tmp_path / "cache")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert again.train.meta == first.train.meta


def test_raw_text_is_hashed_once_at_a_later_start(text, tmp_path, monkeypatch):
    open_corpus(CorpusConfig(**text, vocab_size=400), tmp_path / "cache")
    hashed = []
    describe = token_files._describe
    monkeypatch.setattr(token_files, "_describe", lambda path: hashed.append(path) or describe(path))
    monkeypatch.setattr(token_files, "read_documents", None)  # would fail if it were called
    open_corpus(CorpusConfig(**text, vocab_size=400), tmp_path / "cache")
    assert hashed == [text["train_files"], text["eval_files"]]


def test_caches_of_version_0_1_are_found(tmp_path, monkeypatch):
    """The digests in the names of caches are those of the version that made the recorded runs."""
    with tarfile.open(Path(__file__).parents[1] / "checkpoints" / "format_2.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    cache = tmp_path / "babistories" / "cache"
    recorded = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(token_files, "read_documents", None)  # would fail if it were called
    files = {"train_files": str(tmp_path / "train.txt"), "eval_files": str(tmp_path / "valid.txt")}
    opened = open_corpus(CorpusConfig(**files, vocab_size=320), cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == recorded
    assert opened.train.directory.name == "tokens-f1b47d3d4293518a"
    assert opened.evaluation.directory.name == "tokens-f84adcedd86640b4"


def test_prepared_tokens_bring_their_tokenizer(text, tmp_path):
    raw = open_corpus(CorpusConfig(**text, vocab_size=390), tmp_path / "cache")
    prepared = CorpusConfig(str(raw.train.directory), text["eval_files"], tokenizer="no such path")
    opened = open_corpus(prepared, tmp_path / "other")
    assert opened.tokenizer.fingerprint() == raw.tokenizer.fingerprint()
    assert opened.evaluation.meta == raw.evaluation.meta
    assert opened.vocab_size == 448, "padded to a multiple of 64"


def test_without_files_the_corpus_is_the_built_in_stories(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BUILT_IN_TRAIN", (1, 60))
    monkeypatch.setattr(corpus, "BUILT_IN_EVAL", (2, 5))
    opened = open_corpus(CorpusConfig(vocab_size=400), tmp_path)
    assert opened.name == corpus.BUILT_IN
    assert (opened.train.meta.documents, opened.evaluation.meta.documents) == (60, 5)


@pytest.mark.parametrize("alone", ["train_files", "eval_files"])
def test_both_kinds_of_files_are_needed(text, tmp_path, alone):
    with pytest.raises(UserError, match="go together"):
        open_corpus(CorpusConfig(**{alone: text[alone]}), tmp_path)
