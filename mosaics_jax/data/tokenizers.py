"""Tokenizers: SentencePiece, trained here or elsewhere, and GPT-2's byte-pair encoding, both from local files.

Both can encode single bytes, so that any text round-trips. Both have a token for the end of a document, which decodes
to ``<|endoftext|>``; encoding a text never produces it, even if the text contains these characters.
"""

import codecs
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tiktoken

from mosaics_jax.data.documents import END_OF_TEXT
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging

SENTENCEPIECE_FILE = "tokenizer.model"
GPT2_ENCODER_FILE, GPT2_MERGES_FILE = "encoder.json", "vocab.bpe"
SPACE_MARK = "\u2581"  # SentencePiece's internal spelling of a space


class Tokenizer(Protocol):
    """Text to token ids and back."""

    kind: str  # "sentencepiece" or "gpt2"
    vocab_size: int
    end_of_text: int  # the id that ends a document

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end_of_text. The text ``<|endoftext|>`` is encoded as ordinary characters."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, in this thread."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 bytes of ids; the bytes may begin or end within a character."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; end_of_text gives ``<|endoftext|>``, and bytes that are not UTF-8 give U+FFFD."""

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's files: equal fingerprints mean equal token ids."""

    def save(self, directory: str | Path) -> None:
        """Writes the files that ``load_tokenizer(directory)`` reads."""


class SentencePieceTokenizer:
    """A SentencePiece model, from `train_sentencepiece` (any text round-trips) or from an existing ``.model`` file."""

    kind = "sentencepiece"

    def __init__(self, model: bytes):
        """``model`` is the content of a ``.model`` file. UserError if it is damaged or has no end-of-text piece."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError("not a SentencePiece model: the file is damaged or of another kind") from error
        self._model = model
        processor = self._processor
        self.vocab_size = processor.get_piece_size()
        self._unknown = processor.unk_id()
        piece_id = processor.piece_to_id(END_OF_TEXT)
        self.end_of_text = processor.eos_id() if piece_id == self._unknown else piece_id
        if self.end_of_text < 0:
            raise UserError(f"the SentencePiece model has neither a piece {END_OF_TEXT} nor an end-of-sentence piece")
        self._bytes = [self._piece_bytes(index) for index in range(self.vocab_size)]
        # SentencePiece would decode a space mark of the text as a space: it is encoded as its three bytes instead.
        self._space_mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        self._byte_fallback = self._unknown not in self._space_mark
        # Models made elsewhere may put a space before every text; decoding removes it.
        self._adds_space = processor.id_to_piece(processor.encode("a")[0]).startswith(SPACE_MARK)

    def _piece_bytes(self, index: int) -> bytes:
        if index == self.end_of_text:
            return END_OF_TEXT.encode()
        if self._processor.is_control(index):
            return b""
        piece = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            batch = self._processor.encode(list(texts))
        except TypeError as error:  # raised by SentencePiece for a text that has no UTF-8 encoding
            raise UserError("the text holds a lone surrogate, which is no Unicode text") from error
        for index, text in enumerate(texts):
            if not self._byte_fallback and self._unknown in batch[index]:
                raise UserError(self._unknown_error(text))
            if self._byte_fallback and SPACE_MARK in text:
                batch[index] = self._encode_around_space_marks(text)
        return batch

    def _encode_around_space_marks(self, text: str) -> list[int]:
        first, *others = self._processor.encode(text.split(SPACE_MARK))
        return first + [index for part in others for index in (*self._space_mark, *part)]

    def _unknown_error(self, text: str) -> str:
        unknown = sorted(char for char in set(text) if self._unknown in self._processor.encode(char))
        shown = " ".join(map(repr, unknown[:8]))
        return f"the tokenizer has never seen {shown} and has no byte fallback: use one that was trained with it"

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self._bytes[index] for index in ids])

    def decode(self, ids: Iterable[int]) -> str:
        text = self.decode_bytes(ids).decode(errors="replace")
        return text.removeprefix(" ") if self._adds_space else text

    def fingerprint(self) -> str:
        return hashlib.sha256(self._model).hexdigest()

    def save(self, directory: str | Path) -> None:
        staging.write_file(Path(directory) / SENTENCEPIECE_FILE, self._model)


class Gpt2Tokenizer:
    """GPT-2's byte-pair encoding, from its published ``encoder.json`` and ``vocab.bpe``: 50257 ids."""

    kind = "gpt2"

    def __init__(self, encoder_json: bytes, vocab_bpe: bytes):
        """The arguments are the contents of the two files. UserError if they are damaged or do not belong together."""
        self._files = {GPT2_ENCODER_FILE: encoder_json, GPT2_MERGES_FILE: vocab_bpe}
        try:
            ranks, self.end_of_text = _gpt2_ranks(encoder_json.decode(), vocab_bpe.decode())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"{GPT2_ENCODER_FILE} and {GPT2_MERGES_FILE} are damaged or do not belong together ({error!r})"
            ) from error
        # The pattern that splits text into words, from GPT-2's released encoder.
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end_of_text}
        )
        self.vocab_size = len(ranks) + 1

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes(list(ids))

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def fingerprint(self) -> str:
        return hashlib.sha256(b"\0".join(self._files.values())).hexdigest()

    def save(self, directory: str | Path) -> None:
        for name, content in self._files.items():
            staging.write_file(Path(directory) / name, content)


def _gpt2_ranks(encoder_json: str, vocab_bpe: str) -> tuple[dict[bytes, int], int]:
    """The id of each token's bytes, which tiktoken takes, and the id of the end of text.

    The files spell each byte as one visible character: a printable Latin-1 character as itself, other bytes from U+0100
    on.
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}

    def to_bytes(token: str) -> bytes:
        return bytes(byte_of[char] for char in token)

    ids = json.loads(encoder_json)
    end_of_text = ids.pop(END_OF_TEXT)
    ranks = {to_bytes(token): rank for token, rank in ids.items()}
    merges = [line.split() for line in vocab_bpe.splitlines() if line and not line.startswith("#version")]
    first_merge = len(ranks) - len(merges)
    # tiktoken merges pairs in the order of their ids: this is GPT-2's order if the n-th merge has the n-th id after the
    # single bytes.
    for rank, (left, right) in enumerate(merges, start=first_merge):
        if ranks[to_bytes(left + right)] != rank:
            raise ValueError(f"merge {left + right!r} has id {ids[left + right]}, expected {rank}")
    if first_merge != 256 or end_of_text != len(ranks):
        raise ValueError(f"{len(ranks)} ids for 256 bytes and {len(merges)} merges")
    return ranks, end_of_text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a ``.model`` file, or a directory with ``tokenizer.model`` or with GPT-2's two files. Raises UserError."""
    path = Path(path)
    try:
        if path.is_file():
            return SentencePieceTokenizer(path.read_bytes())
        if (path / SENTENCEPIECE_FILE).is_file():
            return SentencePieceTokenizer((path / SENTENCEPIECE_FILE).read_bytes())
        if (path / GPT2_ENCODER_FILE).is_file() and (path / GPT2_MERGES_FILE).is_file():
            return Gpt2Tokenizer((path / GPT2_ENCODER_FILE).read_bytes(), (path / GPT2_MERGES_FILE).read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    raise UserError(
        f"{path}: no tokenizer there; expected a SentencePiece .model file, or a directory with {SENTENCEPIECE_FILE} "
        f"or with {GPT2_ENCODER_FILE} and {GPT2_MERGES_FILE}"
    )


def train_sentencepiece(
    documents: Iterable[str], vocab_size: int, out_dir: str | Path | None = None, max_bytes: int = 10_000_000
) -> SentencePieceTokenizer:
    """Trains a byte-pair SentencePiece model with byte fallback, and saves it in ``out_dir`` if it is given.

    Reads all documents and trains on an evenly spread sample of at most about ``max_bytes`` of UTF-8. Equal documents
    give equal models, byte for byte. Raises UserError if the text does not allow ``vocab_size``.
    """
    sample = spread_sample(documents, max_bytes)
    if not sample:
        raise UserError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=[END_OF_TEXT],
            max_sentence_length=2**30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_vocab_size_error(vocab_size, str(error))) from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    if out_dir is not None:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        tokenizer.save(out_dir)
    return tokenizer


def _vocab_size_error(vocab_size: int, message: str) -> str:
    """One line from SentencePiece's message, which names the bound within a longer text about its source files."""
    if bound := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"vocab_size={vocab_size} is too small: the characters of this text and the 256 bytes need {bound[1]}"
    if bound := re.search(r"value <= (\d+)", message):
        return f"vocab_size={vocab_size} is too large: this text yields at most {bound[1]}"
    return f"SentencePiece cannot train with vocab_size={vocab_size}: {' '.join(message.split())}"


def spread_sample(documents: Iterable[str], max_bytes: int) -> list[str]:
    """All documents if they have at most ``max_bytes`` of UTF-8, else every 2nd, 4th, 8th, ... document.

    The sample is halved whenever it exceeds ``max_bytes``. Memory stays bounded, and neither the total size nor a
    random generator is needed.
    """
    sample: list[tuple[str, int]] = []
    total, stride = 0, 1
    for index, document in enumerate(documents):
        if index % stride:
            continue
        # A document that is larger than the sample is cut.
        document = document[:max_bytes]
        size = len(document.encode())
        sample.append((document, size))
        total += size
        while total > max_bytes and len(sample) > 1:
            sample = sample[::2]
            total = sum(size for _, size in sample)
            stride *= 2
    return [document for document, _ in sample]


class StreamDecoder:
    """Decodes ids one at a time into whole characters: bytes are buffered until their character is complete."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that ``token`` completes, possibly none."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """The end of the text: U+FFFD if the ids ended within a character. Resets the decoder for the next text."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
