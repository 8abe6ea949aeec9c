"""Any text round-trips, no text encodes to end_of_text, and damaged or unsuitable tokenizers are refused."""

import io

import pytest
import sentencepiece as spm

from mosaics_jax.data.tokenizers import (
    Gpt2Tokenizer,
    SentencePieceTokenizer,
    StreamDecoder,
    load_tokenizer,
    spread_sample,
    train_sentencepiece,
)
from mosaics_jax.errors import UserError

TEXTS = [
    "",
    " ",
    "  leading, double  and trailing spaces  ",
    "lines\n\n\tand tabs\r\n",
    "\U0001f98a\U0001f469\u200d\U0001f467 \u4e2d\u6587 e\u0301 \u00e9 \u3000\u00a0\ufeff\ufffd",
    "\x00\x01\x1b\x7f",
    "<|endoftext|> <unk> <0x0A> </s>",
    "\u2581SentencePiece's own\u2581\u2581marks\u2581 \u2585 \u2047",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips_without_end_of_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.end_of_text not in ids
    assert all(0 <= index < tokenizer.vocab_size for index in ids)


def test_stories_round_trip_in_a_batch(tokenizer, story_texts):
    batch = tokenizer.encode_batch(story_texts)
    assert [tokenizer.decode(ids) for ids in batch] == story_texts
    assert batch[7] == tokenizer.encode(story_texts[7])


def test_end_of_text_is_decoded(tokenizer):
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text]) == "a<|endoftext|>"


@pytest.mark.parametrize("text", TEXTS)
def test_stream_never_breaks_a_character(tokenizer, text):
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.push(index) for index in tokenizer.encode(text)]
    assert "".join(parts) == text and decoder.flush() == ""
    assert text.count("\ufffd") == sum(part.count("\ufffd") for part in parts)


def test_stream_that_ends_within_a_character(tokenizer):
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(index) for index in tokenizer.encode("\U0001f98a")[:-1]] == [""] * 3
    assert decoder.flush() == "\ufffd"
    assert decoder.push(tokenizer.encode("a")[0]) == "a"


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path, story_texts):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.end_of_text, loaded.fingerprint()) == (
        tokenizer.kind,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
        tokenizer.fingerprint(),
    )
    assert loaded.encode(story_texts[0]) == tokenizer.encode(story_texts[0])


def test_gpt2_merges_by_rank_within_words(gpt2):
    def token(text):
        return gpt2.encode(text)[0]

    assert gpt2.encode("the then") == [*gpt2.encode("the"), token(" "), *gpt2.encode("the"), token("n")]
    assert gpt2.encode("the") == [257] and gpt2.encode("and") == [260]
    assert gpt2.end_of_text == 261 and gpt2.vocab_size == 262


def test_training_is_reproducible(sentencepiece, story_texts, tmp_path):
    again = train_sentencepiece(story_texts, vocab_size=600, out_dir=tmp_path / "new")
    assert again.vocab_size == 600
    assert again.fingerprint() == sentencepiece.fingerprint() == load_tokenizer(tmp_path / "new").fingerprint()
    assert load_tokenizer(tmp_path / "new" / "tokenizer.model").fingerprint() == again.fingerprint()


def test_vocabulary_sizes_that_the_text_does_not_allow(story_texts):
    with pytest.raises(UserError, match=r"vocab_size=100 is too small: .* need 3\d\d"):
        train_sentencepiece(story_texts, 100)
    with pytest.raises(UserError, match=r"vocab_size=90000 is too large: this text yields at most \d+"):
        train_sentencepiece(story_texts[:2], 90000)
    with pytest.raises(UserError, match="no text"):
        train_sentencepiece([], 300)


def test_sample_is_spread_over_the_documents():
    documents = [f"{index:04}" for index in range(1000)]
    assert spread_sample(documents, max_bytes=4000) == documents
    assert spread_sample(documents, max_bytes=3999) == documents[::2]
    assert spread_sample(documents, max_bytes=100) == documents[::64]
    assert spread_sample(["x" * 100], max_bytes=10) == ["x" * 10]


def foreign_model(story_texts, **options):
    """A SentencePiece model with default options, which has sentence marks."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(story_texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_models_made_elsewhere(story_texts):
    tokenizer = SentencePieceTokenizer(foreign_model(story_texts))
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"
    with pytest.raises(UserError, match="has never seen 'Ж' 'ш'"):
        tokenizer.encode("the шЖ")
    with pytest.raises(UserError, match="end-of-sentence"):
        SentencePieceTokenizer(foreign_model(story_texts, eos_id=-1))


def test_text_with_a_lone_surrogate(sentencepiece):
    with pytest.raises(UserError, match="surrogate"):
        sentencepiece.encode("a\udcff")


def test_damaged_or_missing_tokenizers(tmp_path, gpt2):
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(tmp_path / "missing.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad.model: not a SentencePiece model"):
        load_tokenizer(tmp_path / "bad.model")
    gpt2.save(tmp_path)
    encoder = (tmp_path / "encoder.json").read_bytes()
    (tmp_path / "encoder.json").write_bytes(encoder[:-10])
    with pytest.raises(UserError, match="damaged or do not belong together"):
        load_tokenizer(tmp_path)


def test_gpt2_files_that_do_not_belong_together(gpt2, tmp_path):
    gpt2.save(tmp_path)
    encoder, merges = ((tmp_path / name).read_bytes() for name in ("encoder.json", "vocab.bpe"))
    for wrong in (merges.replace(b"t h\nth e", b"th e\nt h"), merges.replace(b"a n\n", b"")):
        assert wrong != merges
        with pytest.raises(UserError, match="do not belong together"):
            Gpt2Tokenizer(encoder, wrong)
