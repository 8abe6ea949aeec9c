"""Training data: text, tokenizers and token files, and batches for every experiment.

documents, tokenizers, token_files, corpus, windows    text files to batches of tokens
stories, story_words    the built-in text
automata, regbench      in-context language learning (RegBench)
mqar                    multi-query associative recall
moons                   the signal of three moons
batches, random_bits, workers    what they share
"""

from mosaics_jax.data.corpus import Corpus, CorpusConfig, open_corpus
from mosaics_jax.data.token_files import TokenFile, prepare
from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer, train_sentencepiece
from mosaics_jax.data.windows import evaluation_windows, random_windows

__all__ = [
    "Corpus",
    "CorpusConfig",
    "TokenFile",
    "Tokenizer",
    "evaluation_windows",
    "load_tokenizer",
    "open_corpus",
    "prepare",
    "random_windows",
    "train_sentencepiece",
]
