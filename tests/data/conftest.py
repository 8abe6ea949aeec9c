"""Two small tokenizers: SentencePiece trained on built-in stories, and one in GPT-2's format with five merges."""

import json

import pytest

from mosaics_jax.data.stories import stories
from mosaics_jax.data.tokenizers import Gpt2Tokenizer, train_sentencepiece


def gpt2_files(merges: list[tuple[str, str]]) -> tuple[bytes, bytes]:
    """An ``encoder.json`` and ``vocab.bpe`` with these merges (of printable characters) in GPT-2's order of bytes."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    alphabet = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    tokens = [*alphabet, *(left + right for left, right in merges), "<|endoftext|>"]
    encoder = {token: index for index, token in enumerate(tokens)}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    return json.dumps(encoder).encode(), "\n".join(lines).encode()


@pytest.fixture(scope="session")
def story_texts():
    return list(stories(seed=0, count=200))


@pytest.fixture(scope="session")
def sentencepiece(story_texts):
    return train_sentencepiece(story_texts, vocab_size=600)


@pytest.fixture(scope="session")
def gpt2():
    return Gpt2Tokenizer(*gpt2_files([("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("an", "d")]))


@pytest.fixture(params=["sentencepiece", "gpt2"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
