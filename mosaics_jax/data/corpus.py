"""Opens the text that a language model is trained on: token files for training and evaluation, and a tokenizer."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.token_files import (
    TextFile,
    TokenFile,
    cached_sentencepiece,
    cached_tokens,
    describe_files,
    is_token_directory,
)
from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting

BUILT_IN = "built-in generated stories"
BUILT_IN_TRAIN, BUILT_IN_EVAL = (1, 12_000), (2, 600)  # seed and number of stories
DEFAULT_VOCAB_SIZE = 4096
VOCAB_MULTIPLE = 64  # the embedding has a multiple of this many rows, which hardware is faster at (v1: 50257 to 50304)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """The text, and how it is split into tokens."""

    train_files: str = setting(
        "",
        "training text: files or globs, comma separated, or a directory of prepared tokens (empty: built-in stories)",
    )
    eval_files: str = setting("", "evaluation text, likewise; needed with --train_files")
    tokenizer: str = setting(
        "sentencepiece",
        "'sentencepiece' trains one on the training text; or a path: a .model file, or a directory with encoder.json "
        "and vocab.bpe. Prepared tokens bring their own",
    )
    vocab_size: int = setting(
        0, "V: ids of a tokenizer trained here, and rows of the embedding (0: 4096, or what the tokenizer needs)"
    )


@dataclasses.dataclass(frozen=True)
class Corpus:
    """An opened corpus. ``vocab_size`` is the V of the model, at least that of the tokenizer."""

    name: str
    train: TokenFile
    evaluation: TokenFile
    tokenizer: Tokenizer
    vocab_size: int


def open_corpus(config: CorpusConfig, cache_dir: str | Path) -> Corpus:
    """Opens prepared tokens, or tokenizes raw text once and caches the tokens under ``cache_dir``.

    Raises UserError on missing or malformed text, tokens of another tokenizer, or a V below that of the tokenizer.
    """
    train, evaluation = _split(config.train_files), _split(config.eval_files)
    if bool(train) != bool(evaluation):
        raise UserError("--train_files and --eval_files go together: give both, or neither for the built-in stories")
    name = ",".join(train) if train else BUILT_IN
    if not train:
        train, evaluation = ([_built_in(Path(cache_dir), *split)] for split in (BUILT_IN_TRAIN, BUILT_IN_EVAL))
    if _are_tokens(train):
        train_tokens = TokenFile.open(train[0])
        tokenizer = train_tokens.tokenizer()
    elif config.tokenizer == "sentencepiece":
        files = describe_files(train)  # hashed once, for the names of both caches
        tokenizer = cached_sentencepiece(files, config.vocab_size or DEFAULT_VOCAB_SIZE, cache_dir)
        train_tokens = _cached_tokens(files, tokenizer, cache_dir)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        train_tokens = _cached_tokens(describe_files(train), tokenizer, cache_dir)
    if _are_tokens(evaluation):
        evaluation_tokens = TokenFile.open(evaluation[0])
        evaluation_tokens.check_tokenizer(tokenizer)
    else:
        evaluation_tokens = _cached_tokens(describe_files(evaluation), tokenizer, cache_dir)
    vocab_size = config.vocab_size or -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if vocab_size < tokenizer.vocab_size:
        raise UserError(f"vocab_size={vocab_size} is below the tokenizer's {tokenizer.vocab_size} ids; leave it at 0")
    return Corpus(name, train_tokens, evaluation_tokens, tokenizer, vocab_size)


def _split(files: str) -> list[str]:
    return [name.strip() for name in files.split(",") if name.strip()]


def _are_tokens(paths: list[str]) -> bool:
    return len(paths) == 1 and is_token_directory(paths[0])


def _cached_tokens(files: Sequence[TextFile], tokenizer: Tokenizer, cache_dir: str | Path) -> TokenFile:
    return cached_tokens(files, tokenizer, cache_dir, workers=os.cpu_count() or 1)


def _built_in(cache_dir: Path, seed: int, count: int) -> str:
    path = cache_dir / f"stories-{seed}-{count}.jsonstr.txt"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_corpus(path, seed, count)
    return str(path)
