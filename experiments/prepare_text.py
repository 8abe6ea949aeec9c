"""Tokenizes text once, so that training starts without delay and every run reads the same tokens.

Commands for the directory that holds the downloaded text:

    # BabiStories (the train and validation text of the Memory Mosaics repository), with the GPT-2 tokens of the papers;
    # gpt2_bpe holds GPT-2's published encoder.json and vocab.bpe
    python -m experiments.prepare_text --input='babistories/train*' --tokenizer=gpt2_bpe --out=data/babistories_train
    python -m experiments.prepare_text --input='babistories/val*' --tokenizer=gpt2_bpe --out=data/babistories_val

    # TinyStories (roneneldan/TinyStories on Hugging Face), with a vocabulary of its own; validation text uses the
    # tokenizer of the training text
    python -m experiments.prepare_text --input=TinyStories-train.txt --vocab_size=4096 --out=data/tinystories_train
    python -m experiments.prepare_text --input=TinyStories-valid.txt --tokenizer=data/tinystories_train \\
        --out=data/tinystories_valid

Input may be BabiStories files (one JSON string a line), .txt with <|endoftext|> between documents, .jsonl with a
``text`` field, and the same under .gz or .xz. About 1 (SentencePiece) to 2 (GPT-2) million
tokens a second and core.
"""

import os
import time

from absl import flags

from experiments import entry
from mosaics_jax.data.documents import matched_files, read_documents
from mosaics_jax.data.token_files import check_target, prepare
from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from mosaics_jax.errors import UserError

INPUT = flags.DEFINE_list("input", None, "text files or globs, comma separated")
TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    "sentencepiece",
    "'sentencepiece' trains one on the input; or a path: a .model file, a directory with encoder.json and vocab.bpe, "
    "or token files whose tokenizer is to be used",
)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 4096, "ids of a tokenizer trained here")
OUT = flags.DEFINE_string("out", None, "directory for the token files")
WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "processes that tokenize", lower_bound=1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace token files that are already there")


def main(argv: list[str]) -> None:
    if not INPUT.value or not OUT.value:
        raise UserError("both --input and --out are needed; see --help")
    # Files and target are checked before minutes go into training a tokenizer.
    files = matched_files(INPUT.value)
    check_target(OUT.value, OVERWRITE.value)
    tokenizer: Tokenizer
    if TOKENIZER.value == "sentencepiece":
        print(f"training a SentencePiece tokenizer of {VOCAB_SIZE.value} ids", flush=True)
        tokenizer = train_sentencepiece(read_documents(files), VOCAB_SIZE.value)
    else:
        tokenizer = load_tokenizer(TOKENIZER.value)
    start = time.monotonic()
    meta = prepare(files, tokenizer, OUT.value, WORKERS.value, overwrite=OVERWRITE.value).meta
    seconds = time.monotonic() - start
    print(
        f"{OUT.value}: {meta.documents:,} documents, {meta.tokens:,} tokens ({meta.dtype}), "
        f"vocabulary {meta.vocab_size:,} ({meta.tokenizer}), {meta.tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    entry.run(main)
