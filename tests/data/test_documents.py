"""Every format is read correctly, and every kind of bad file is refused with its name and line."""

import gzip
import json
import lzma

import pytest

from mosaics_jax.data.documents import matched_files, read_documents
from mosaics_jax.errors import UserError

DOCUMENTS = ["Once upon a time,\nthere was a fox.", 'She said "hi".', " two  spaces, caf\u00e9 \U0001f98a\t"]
AS_STORIES = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
AS_JSONL = "".join(json.dumps({"id": 1, "text": document}) + "\n" for document in DOCUMENTS)
AS_TEXT = "\n<|endoftext|>\n".join(DOCUMENTS)
COMPRESSIONS = pytest.mark.parametrize(
    "compress, suffix", [(bytes, ""), (gzip.compress, ".gz"), (lzma.compress, ".xz")], ids=["plain", "gzip", "xz"]
)


@COMPRESSIONS
@pytest.mark.parametrize(
    "name, content",
    [("a.txt", AS_STORIES), ("a.jsonl", AS_JSONL), ("a.jsonl", AS_STORIES)],
    ids=["stories", "jsonl", "strings in jsonl"],
)
def test_json_documents_are_read_as_written(tmp_path, name, content, compress, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(compress(content.encode()))
    assert list(read_documents([str(path)])) == DOCUMENTS


@COMPRESSIONS
def test_plain_text_is_split_at_the_end_of_text(tmp_path, compress, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compress(AS_TEXT.encode()))
    assert list(read_documents([str(path)])) == [document.strip() for document in DOCUMENTS]


@pytest.mark.parametrize(
    "content, documents",
    [
        (b"one<|endoftext|>two\nmore<|endoftext|><|endoftext|> \n", ["one", "two\nmore"]),  # within a line, and blank
        (b'"Hello," said Tom.\nHe left.', ['"Hello," said Tom.\nHe left.']),  # prose that begins with a quote
        (b'<|endoftext|>"Hello\nand no end of the quote', ['"Hello\nand no end of the quote']),
        (b"\xef\xbb\xbfone\r\ntwo\r\n", ["one\ntwo"]),  # byte order mark and CRLF
        (b'\n\n"one"\n\n"two"', ["one", "two"]),
    ],
)
def test_details_of_the_formats(tmp_path, content, documents):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert list(read_documents([str(path)])) == documents


def test_files_are_sorted_and_read_once(tmp_path):
    for name in ("b.txt", "a.txt", "c.dat"):
        (tmp_path / name).write_text(name)
    pattern = str(tmp_path / "*.txt")
    assert matched_files([pattern, str(tmp_path / "b.txt")]) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert list(read_documents([pattern])) == ["a.txt", "b.txt"]


def test_the_bytes_of_each_read_are_reported(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(AS_STORIES.encode()))
    counts: list[int] = []
    list(read_documents([str(path)], on_read=counts.append))
    assert sum(counts) == path.stat().st_size


GZIP, XZ = gzip.compress(AS_STORIES.encode() * 50), lzma.compress(AS_STORIES.encode() * 50)
BAD_FILES = {
    "empty": ("a.txt", b"", "empty"),
    "blank": ("a.txt", b"\n <|endoftext|>\n", "empty"),
    "empty archive": ("a.txt.gz", gzip.compress(b""), "empty"),
    "NUL": ("a.txt", b"one\ntw\0o\n", "line 2.*binary"),
    "not UTF-8": ("a.txt", b"one\ntwo\ncaf\xe9\n", "line 3.*UTF-8"),
    "cut in a character": ("a.txt", "one\ncaf\u00e9".encode()[:-1], "line 2.*UTF-8"),
    "gzip cut": ("a.txt.gz", GZIP[: len(GZIP) // 2], "truncated or damaged"),
    "xz cut": ("a.txt.xz", XZ[: len(XZ) // 2], "truncated or damaged"),
    "xz of nothing": ("a.txt.xz", b"", "truncated or damaged|empty"),
    "not gzip": ("a.txt.gz", b"plain text", "truncated or damaged"),
    "broken later": ("a.txt", b'"one"\n"two"\n"thr', "line 3: not valid JSON"),
    "broken first": ("a.txt", b'"one', "line 1: a JSON string that is broken"),
    "prose": ("a.txt", b'"Hello."\nSaid Tom.', "line 2: not valid JSON.*begins with a quotation mark"),
    "no text": ("a.jsonl", b'{"text": "one"}\n{"title": "two"}\n', "line 2: neither"),
    "no string": ("a.jsonl", b'{"text": 3}\n', "line 1: neither"),
    "surrogate": ("a.txt", b'"one"\n"\\ud800"\n', "line 2: a lone surrogate"),
}


@pytest.mark.parametrize("name, content, message", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents([str(path)]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_match_no_file(tmp_path):
    for path, message in (("a.txt", "no such file"), ("*.txt", "no file matches"), ("", "is a directory")):
        with pytest.raises(UserError, match=message):
            matched_files([str(tmp_path / path)])
    with pytest.raises(UserError, match="no text files"):
        matched_files([])
