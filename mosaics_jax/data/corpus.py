"""From file names to what a language model is trained on: token files for training and evaluation, and a tokenizer."""

import dataclasses
import os
from pathlib import Path

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.token_files import TokenFile, cached_sentencepiece, cached_tokens, is_token_directory
from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.settings import setting

BUILT_IN = "built-in generated stories"
BUILT_IN_TRAIN, BUILT_IN_EVAL = (1, 12_000), (2, 600)  # seed and number of stories
DEFAULT_VOCAB_SIZE = 4096
VOCAB_MULTIPLE = 64  # a tokenizer's vocabulary is padded to it, for the sake of the hardware (v1: 50257 to 50304)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Which text, and how it is cut into tokens."""

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
    """An opened corpus. ``vocab_size`` is the model's V, at least the tokenizer's."""

    name: str
    train: TokenFile
    evaluation: TokenFile
    tokenizer: Tokenizer
    vocab_size: int


def open_corpus(config: CorpusConfig, cache_dir: str | Path) -> Corpus:
    """Opens prepared tokens, or tokenizes raw text, which is done once and kept under ``cache_dir``.

    Raises UserError on text that is missing or bad, tokens of another tokenizer, or a V below the tokenizer's.
    """
    train, evaluation = _split(config.train_files), _split(config.eval_files)
    if bool(train) != bool(evaluation):
        raise UserError("--train_files and --eval_files go together: give both, or neither for the built-in stories")
    name = ",".join(train) if train else BUILT_IN
    if not train:
        train, evaluation = ([_built_in(Path(cache_dir), *which)] for which in (BUILT_IN_TRAIN, BUILT_IN_EVAL))
    prepared = len(train) == 1 and is_token_directory(train[0])
    if prepared:
        train_tokens = TokenFile.open(train[0])
        tokenizer = train_tokens.tokenizer()
    else:
        if config.tokenizer == "sentencepiece":
            tokenizer = cached_sentencepiece(train, config.vocab_size or DEFAULT_VOCAB_SIZE, cache_dir)
        else:
            tokenizer = load_tokenizer(config.tokenizer)
        train_tokens = _tokens(train, tokenizer, cache_dir)
    vocab_size = config.vocab_size or -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if vocab_size < tokenizer.vocab_size:
        raise UserError(f"vocab_size={vocab_size} is below the tokenizer's {tokenizer.vocab_size} ids; leave it at 0")
    return Corpus(name, train_tokens, _tokens(evaluation, tokenizer, cache_dir), tokenizer, vocab_size)


def _split(files: str) -> list[str]:
    return [name.strip() for name in files.split(",") if name.strip()]


def _tokens(files: list[str], tokenizer: Tokenizer, cache_dir: str | Path) -> TokenFile:
    if len(files) == 1 and is_token_directory(files[0]):
        tokens = TokenFile.open(files[0])
        tokens.check_tokenizer(tokenizer)
        return tokens
    return cached_tokens(files, tokenizer, cache_dir, workers=os.cpu_count() or 1)


def _built_in(cache_dir: Path, seed: int, count: int) -> str:
    path = cache_dir / f"stories-{seed}-{count}.jsonstr.txt"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_corpus(path, seed, count)
    return str(path)
