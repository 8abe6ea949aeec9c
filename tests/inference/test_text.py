"""The order in which text is yielded."""

from mosaics_jax.inference import Burst, stream_text


class ByteTokenizer:
    """A token is a byte."""

    def decode_bytes(self, ids):
        return bytes(ids)


def burst(*rows):
    """From (bytes, alive) of each row."""
    return Burst([list(tokens) for tokens, _ in rows], [alive for _, alive in rows], 0.1, False)


def test_first_unfinished_story_streams_and_the_others_wait():
    asked = []

    def bursts():
        for new in (
            burst((b"a", True), (b"x", True), (b"p", False)),
            burst((b"b", False), (b"y", True), (b"", False)),
            burst((b"", False), (b"z", True), (b"", False)),
            burst((b"", False), (b"", False), (b"", False)),
        ):
            asked.append(new)
            yield new

    pieces = []
    for piece in stream_text(["1:", "2:", "3:"], bursts(), ByteTokenizer()):
        pieces.append(piece)
        assert len(pieces) == len(asked) + 1  # a piece is out before the next burst is asked for
    assert pieces == ["1:", "a", "b\n\n2:xy", "z", "\n\n3:p"]


def test_characters_stay_whole():
    one, two = "é".encode(), "海".encode()
    bursts = [burst((one[:1], True)), burst((one[1:] + two[:2], True)), burst((two[2:] + one[:1], False))]
    assert list(stream_text(["-"], bursts, ByteTokenizer())) == ["-", "", "é", "海\ufffd"]
