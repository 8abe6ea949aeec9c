"""Token directories: text as one stream of token ids on disk, with all that is needed to read the stream.

tokens.bin            little-endian uint16 (vocabularies up to 65536) or uint32; an end_of_text after each document
meta.json             format, dtype, counts, tokenizer, sources and hashes (class `Meta`)
tokenizer.model       the tokenizer itself; or its two files encoder.json and vocab.bpe
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mosaics_jax.data.documents import matched_files, read_documents
from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from mosaics_jax.data.workers import parallel_map
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging

FORMAT, VERSION = "mosaics_jax tokens", 1
TOKENS_FILE, META_FILE = "tokens.bin", "meta.json"
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
CHUNK_CHARS = 1_000_000  # characters that a worker tokenizes at a time
SCAN_TOKENS = 8_000_000  # tokens that are verified at a time


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A text file that tokens are made from."""

    path: str
    bytes: int
    sha256: str  # of the file on disk, before decompression


@dataclasses.dataclass(frozen=True)
class Meta:
    """The content of ``meta.json``: what ``tokens.bin`` holds."""

    dtype: str
    tokens: int
    documents: int
    end_of_text: int
    vocab_size: int
    tokenizer: str  # Tokenizer.kind
    tokenizer_fingerprint: str
    tokens_sha256: str
    sources: tuple[TextFile, ...]


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """An open token directory. ``tokens`` is a read-only memory map, (meta.tokens,) of type meta.dtype."""

    directory: Path
    meta: Meta
    tokens: np.ndarray

    @classmethod
    def open(cls, directory: str | Path) -> "TokenFile":
        """Opens a token directory and verifies every token by reading all of them once. UserError if it is damaged."""
        directory = Path(directory)
        meta = _read_meta(directory)
        path, dtype = directory / TOKENS_FILE, DTYPES[meta.dtype]
        if not path.is_file():
            raise UserError(f"{directory}: damaged token files ({TOKENS_FILE} is missing); prepare them again")
        size, expected = path.stat().st_size, meta.tokens * dtype.itemsize
        if size != expected or not size:
            raise UserError(f"{path}: damaged token file ({size} bytes, expected {expected}); prepare it again")
        tokens = np.memmap(path, dtype=dtype, mode="r")
        digest = hashlib.sha256()
        for start in range(0, len(tokens), SCAN_TOKENS):
            chunk = tokens[start : start + SCAN_TOKENS]
            if (largest := int(chunk.max())) >= meta.vocab_size:
                raise UserError(
                    f"{path}: token id {largest} is past the vocabulary of {meta.vocab_size}; prepare the tokens again"
                )
            digest.update(chunk.data)
        if digest.hexdigest() != meta.tokens_sha256:
            raise UserError(f"{path}: damaged token file (its SHA-256 is not the recorded one); prepare it again")
        return cls(directory, meta, tokens)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens. UserError if it is missing or damaged, or if it is another one."""
        tokenizer = load_tokenizer(self.directory)
        self.check_tokenizer(tokenizer)
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises UserError unless ``tokenizer`` is the one that made the tokens."""
        if tokenizer.fingerprint() != self.meta.tokenizer_fingerprint:
            raise UserError(
                f"{self.directory}: these tokens were made with another tokenizer ({self.meta.tokenizer}, "
                f"{self.meta.vocab_size} ids, {self.meta.tokenizer_fingerprint[:12]}) than the one in use "
                f"({tokenizer.kind}, {tokenizer.vocab_size} ids, {tokenizer.fingerprint()[:12]})"
            )


def is_token_directory(path: str | Path) -> bool:
    """Whether ``path`` is a token directory, possibly a damaged one."""
    return (Path(path) / META_FILE).is_file()


def _read_meta(directory: Path) -> Meta:
    path = directory / META_FILE
    if not path.is_file():
        raise UserError(f"{directory}: no token files there ({META_FILE} is missing); make them with prepare_text")
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("format") != FORMAT:
            raise UserError(f"{path}: not the {META_FILE} of token files")
        if (version := fields.pop("version")) != VERSION:
            raise UserError(f"{directory}: token files of version {version}, expected {VERSION}; prepare them again")
        sources = tuple(TextFile(**source) for source in fields.pop("sources"))
        meta = Meta(**fields, sources=sources)
        DTYPES[meta.dtype]
        if not all(isinstance(count, int) for count in (meta.tokens, meta.vocab_size, meta.documents)):
            raise ValueError("a count that is no integer")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the tokens again") from error
    return meta


def prepare(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    workers: int = 1,
    progress: bool = True,
    overwrite: bool = False,
) -> TokenFile:
    """Tokenizes all documents of ``paths`` into the token directory ``out``, in ``workers`` processes.

    The result does not depend on ``workers``. If the process is killed at any moment, ``out`` is as before. Raises
    UserError on malformed text, if ``out`` exists and ``overwrite`` is not set, or if ``out`` cannot be written.
    """
    out = Path(out)
    check_target(out, overwrite)
    try:
        return _build(describe_files(paths), tokenizer, out, workers, progress, replace=overwrite)
    except FileExistsError as error:
        raise UserError(f"{out} was made by another run in the meantime; use it, or pass --overwrite") from error


def describe_files(paths: Sequence[str | Path]) -> tuple[TextFile, ...]:
    """The text files that ``paths`` match, in sorted order, with their digests: reads each file once.

    Raises UserError if a path matches no file, or if a file cannot be read.
    """
    return tuple(_describe(path) for path in matched_files(paths))


def _describe(path: str) -> TextFile:
    try:
        with open(path, "rb") as stream:
            return TextFile(path, os.path.getsize(path), hashlib.file_digest(stream, "sha256").hexdigest())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _build(
    files: Sequence[TextFile], tokenizer: Tokenizer, out: Path, workers: int, progress: bool, replace: bool
) -> TokenFile:
    with _writing(out), staging.directory(out, replace) as temporary:
        tokenizer.save(temporary)
        tokens, documents, digest = _write_tokens(files, tokenizer, temporary, workers, progress)
        meta = Meta(
            dtype=_dtype_name(tokenizer),
            tokens=tokens,
            documents=documents,
            end_of_text=tokenizer.end_of_text,
            vocab_size=tokenizer.vocab_size,
            tokenizer=tokenizer.kind,
            tokenizer_fingerprint=tokenizer.fingerprint(),
            tokens_sha256=digest,
            sources=tuple(files),
        )
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(meta)}
        staging.write_file(temporary / META_FILE, (json.dumps(fields, indent=2) + "\n").encode())
    return TokenFile.open(out)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns failures to write into a UserError. FileExistsError is not converted: the caller handles it."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def check_target(out: str | Path, overwrite: bool) -> None:
    """Raises UserError if ``prepare`` may not write to ``out``."""
    out = Path(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if overwrite and out.exists() and not is_token_directory(out):
        raise UserError(f"{out} holds something else than token files: remove it yourself, or name another place")
    if not overwrite and out.exists():
        raise UserError(f"{out} already exists: name another place, or pass --overwrite to replace it")


def _write_tokens(
    files: Sequence[TextFile], tokenizer: Tokenizer, directory: Path, workers: int, progress: bool
) -> tuple[int, int, str]:
    """Writes tokens.bin. Returns the number of tokens, the number of documents and the SHA-256."""
    tokens = documents = 0
    digest = hashlib.sha256()
    total = sum(file.bytes for file in files)
    # disable=None hides the bar if standard error is not a terminal.
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="tokenizing", disable=None if progress else True)
    with bar, open(directory / TOKENS_FILE, "wb") as stream:
        chunks = _chunks(read_documents([file.path for file in files], on_read=bar.update))
        for ids, count in _encoded(chunks, tokenizer, directory, workers):
            stream.write(ids.data)
            digest.update(ids.data)
            tokens += len(ids)
            documents += count
            bar.set_postfix(tokens=tokens, refresh=False)
        stream.flush()
        os.fsync(stream.fileno())
    return tokens, documents, digest.hexdigest()


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups of about CHUNK_CHARS characters."""
    chunk: list[str] = []
    chars = 0
    for document in documents:
        chunk.append(document)
        chars += len(document)
        if chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _encoded(
    chunks: Iterable[list[str]], tokenizer: Tokenizer, directory: Path, workers: int
) -> Generator[tuple[np.ndarray, int], None, None]:
    """Token ids and number of documents of each chunk, in order. The workers load the tokenizer from ``directory``."""
    if workers <= 1:
        return parallel_map(functools.partial(_encode_chunk, tokenizer), chunks, workers)
    return parallel_map(functools.partial(_encode_in_worker, directory), chunks, workers)


def _encode_chunk(tokenizer: Tokenizer, chunk: Sequence[str]) -> tuple[np.ndarray, int]:
    ids: list[int] = []
    for document in tokenizer.encode_batch(chunk):
        ids += document
        ids.append(tokenizer.end_of_text)
    return np.array(ids, DTYPES[_dtype_name(tokenizer)]), len(chunk)


_load_tokenizer_once = functools.cache(load_tokenizer)  # once in each worker process


def _encode_in_worker(directory: Path, chunk: Sequence[str]) -> tuple[np.ndarray, int]:
    return _encode_chunk(_load_tokenizer_once(directory), chunk)


def _dtype_name(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def cached_tokens(
    files: Sequence[TextFile], tokenizer: Tokenizer, cache_dir: str | Path, workers: int = 1, progress: bool = True
) -> TokenFile:
    """The tokens of raw text, made once under ``cache_dir`` and reused by later and simultaneous runs.

    The name of the cache is a digest of the files' contents and of the tokenizer. `describe_files` reads the text for
    it, which costs seconds per gigabyte. Unlike a path and a modification time, a digest is right for copied and
    touched files and for files that change within a clock tick.
    """
    target = Path(cache_dir) / f"tokens-{_content_key(files, tokenizer.fingerprint())}"
    damaged = False
    if target.exists():
        try:
            return TokenFile.open(target)
        except UserError:
            damaged = True
    try:
        return _build(files, tokenizer, target, workers, progress, replace=damaged)
    except FileExistsError:  # another process has written the same tokens in the meantime
        return TokenFile.open(target)


def cached_sentencepiece(files: Sequence[TextFile], vocab_size: int, cache_dir: str | Path) -> Tokenizer:
    """The tokenizer that `train_sentencepiece` makes from these files, trained once and cached under ``cache_dir``."""
    target = Path(cache_dir) / f"sentencepiece-{_content_key(files, str(vocab_size))}"
    if target.exists():
        with contextlib.suppress(UserError):  # a damaged tokenizer is trained again
            return load_tokenizer(target)
    tokenizer = train_sentencepiece(read_documents([file.path for file in files]), vocab_size)
    with contextlib.suppress(FileExistsError), _writing(target), staging.directory(target, replace=True) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def _content_key(files: Sequence[TextFile], salt: str) -> str:
    content = "\n".join([str(VERSION), salt, *(file.sha256 for file in files)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
