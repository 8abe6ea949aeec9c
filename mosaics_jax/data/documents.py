"""Reads documents from text files: published story files, plain text, JSON lines, plain or compressed.

Three formats, told apart by extension and first line:

* BabiStories: one JSON string a line; the first line that is not blank is a JSON string.
* ``.jsonl``: one JSON object a line with the document under ``text``.
* anything else: plain UTF-8 text with ``<|endoftext|>`` between documents, as TinyStories is published.

Each may be under ``.gz`` or ``.xz``.
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
OnRead = Callable[[int], object]  # is told the number of bytes that were just read from disk


def matched_files(paths: Sequence[str | Path]) -> list[str]:
    """The files that paths and globs (``**`` included) name, sorted, each once. UserError if one of them names none."""
    found: set[str] = set()
    for path in map(str, paths):
        if Path(path).is_dir():
            raise UserError(f"{path} is a directory: name the files in it, for example '{path.rstrip('/')}/*.txt'")
        if Path(path).is_file():
            found.add(path)
        elif glob.has_magic(path):
            matches = [match for match in glob.glob(path, recursive=True) if Path(match).is_file()]
            if not matches:
                raise UserError(f"no file matches {path!r}: check the pattern")
            found.update(matches)
        else:
            raise UserError(f"{path}: no such file")
    if not found:
        raise UserError("no text files were named")
    return sorted(found)


def read_documents(paths: Sequence[str | Path], on_read: OnRead = lambda count: None) -> Iterator[str]:
    """Yields the documents of all files that ``paths`` match, in sorted order of the files; blank ones are left out.

    JSON documents come out exactly as written. In plain text, blank space around a document is dropped, a byte order
    mark too, and CRLF becomes a newline. Streams: memory holds one document and one line at a time.
    ``on_read`` is told how many bytes of the files are behind, as they lie on disk.
    Raises UserError naming file and line: missing, empty, binary, truncated or malformed input.
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
    head: list[tuple[int, str]] = []
    for number, line in lines:
        head.append((number, line))
        if not line.isspace():
            break
    else:
        return
    numbered = itertools.chain(head, lines)
    number, first = head[-1]
    is_jsonl = _without_compression(path).suffix == ".jsonl"
    if is_jsonl or (first.lstrip().startswith('"') and _is_json_string(path, number, first)):
        yield from (_json_document(path, number, line) for number, line in numbered if not line.isspace())
    else:
        yield from _split_text(numbered)


def _is_json_string(path: str, number: int, line: str) -> bool:
    """Whether a line that begins with a quote is a JSON string; prose (``"Hello," said Tom.``) goes on after it."""
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
        *ended, rest = line.split(END_OF_TEXT)
        for part in ended:
            parts.append(part)
            yield "".join(parts).strip()
            parts = []
        parts.append(rest)
    yield "".join(parts).strip()


def _lines(path: str, on_read: OnRead) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file, decoded; every way in which reading can fail becomes a UserError."""
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
            with opener(raw) as stream:  # closing it leaves the file below it open
                yield stream


class _CountedFile(io.FileIO):
    """A file that tells how many bytes each read took from disk, compressed or not."""

    def __init__(self, path: str, on_read: OnRead):
        super().__init__(path, "rb")
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._on_read(count)
        return count
