"""Reads documents from text files of three formats, which the extension and the first line determine.

* BabiStories: one JSON string per line. The first line that is not blank is a JSON string.
* ``.jsonl``: one JSON object per line with the document under ``text``.
* Any other file: UTF-8 text with ``<|endoftext|>`` between documents, the format in which TinyStories is published.

Files may be compressed as ``.gz`` or ``.xz``.
"""

import contextlib
import glob
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mosaics_jax.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".xz": lzma.open}
PROSE_HINT = f"plain text that begins with a quotation mark needs a line {END_OF_TEXT} before it"
OnRead = Callable[[int], object]  # called with the number of bytes of each read from disk


def matched_files(paths: Sequence[str | Path]) -> list[str]:
    """The files that paths and globs (``**`` included) match: sorted, without duplicates.

    Raises UserError if a path or glob matches no file.
    """
    files: set[str] = set()
    for path in map(str, paths):
        if Path(path).is_dir():
            raise UserError(f"{path} is a directory: name the files in it, for example '{path.rstrip('/')}/*.txt'")
        if Path(path).is_file():
            files.add(path)
        elif glob.has_magic(path):
            matches = [match for match in glob.glob(path, recursive=True) if Path(match).is_file()]
            if not matches:
                raise UserError(f"no file matches {path!r}: check the pattern")
            files.update(matches)
        else:
            raise UserError(f"{path}: no such file")
    if not files:
        raise UserError("no text files were named")
    return sorted(files)


def read_documents(paths: Sequence[str | Path], on_read: OnRead = lambda count: None) -> Iterator[str]:
    """Yields the documents of all files that ``paths`` match, in sorted order of the files, without blank documents.

    JSON documents are yielded exactly as written. In plain text, white space around a document and a byte order mark
    are removed, and CRLF becomes a newline. The files are streamed: memory holds one document and one line at a time.
    ``on_read`` is called with the number of bytes of each read from disk, compressed or not.
    Raises UserError, with file and line, if input is missing, empty, binary, truncated or malformed.
    """
    for path in matched_files(paths):
        empty = True
        for document in _read_file(path, on_read):
            if document and not document.isspace():
                empty = False
                yield document
        if empty:
            raise UserError(f"{path} is empty: it holds no document")


def _read_file(path: str, on_read: OnRead) -> Iterator[str]:
    lines = _lines(path, on_read)
    leading: list[tuple[int, str]] = []  # blank lines and the first line that is not blank
    for number, line in lines:
        leading.append((number, line))
        if not line.isspace():
            break
    else:
        return
    numbered = itertools.chain(leading, lines)
    number, first = leading[-1]
    is_jsonl = _without_compression(path).suffix == ".jsonl"
    if is_jsonl or (first.lstrip().startswith('"') and _is_json_string(path, number, first)):
        yield from (_json_document(path, number, line) for number, line in numbered if not line.isspace())
    else:
        yield from _split_text(numbered)


def _is_json_string(path: str, number: int, line: str) -> bool:
    """Whether a line that begins with a quote is one JSON string; in prose (``"Hello," said Tom.``) text follows it."""
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(line.strip())
    except ValueError as error:
        raise UserError(f"{path}, line {number}: a JSON string that is broken or does not end; {PROSE_HINT}") from error
    return end == len(line.strip())


def _json_document(path: str, number: int, line: str) -> str:
    try:
        value = json.loads(line, strict=False)
    except ValueError as error:
        hint = "is the file truncated?" if line.lstrip().startswith(('"', "{")) else PROSE_HINT
        raise UserError(f"{path}, line {number}: not valid JSON ({error}); {hint}") from error
    if isinstance(value, dict):
        value = value.get("text")
    if not isinstance(value, str):
        raise UserError(f'{path}, line {number}: neither a JSON string nor an object with a string under "text"')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, line {number}: a lone surrogate, which is no Unicode text ({error.reason})"
        ) from error
    return value


def _split_text(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    parts: list[str] = []
    for _, line in lines:
        *complete, rest = line.split(END_OF_TEXT)
        for part in complete:
            parts.append(part)
            yield "".join(parts).strip()
            parts = []
        parts.append(rest)
    yield "".join(parts).strip()


def _lines(path: str, on_read: OnRead) -> Iterator[tuple[int, str]]:
    """Numbered and decoded lines of a file. Every failure of reading becomes a UserError."""
    number = 0
    try:
        with _open(path, on_read) as stream:
            for number, raw in enumerate(stream, start=1):
                if b"\0" in raw:
                    raise UserError(f"{path}, line {number}: a binary file (it holds a NUL byte); expected UTF-8 text")
                line = raw.removeprefix(BYTE_ORDER_MARK).decode() if number == 1 else raw.decode()
                yield number, line[:-2] + "\n" if line.endswith("\r\n") else line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: the compressed file is truncated or damaged after line {number} ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _without_compression(path: str) -> Path:
    plain = Path(path)
    return plain.with_suffix("") if plain.suffix in OPENERS else plain


@contextlib.contextmanager
def _open(path: str, on_read: OnRead) -> Iterator[IO[bytes]]:
    opener = OPENERS.get(Path(path).suffix)
    with io.BufferedReader(_CountedFile(path, on_read), buffer_size=2**20) as raw:
        if opener is None:
            yield raw
        else:
            with opener(raw) as stream:  # closing the stream does not close ``raw``
                yield stream


class _CountedFile(io.FileIO):
    """A file that reports the number of bytes of each read, before decompression."""

    def __init__(self, path: str, on_read: OnRead):
        super().__init__(path, "rb")
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._on_read(count)
        return count
