"""Generated tokens as text, as soon as they are generated."""

from collections.abc import Iterable, Iterator, Sequence

from mosaics_jax.data.tokenizers import StreamDecoder, Tokenizer
from mosaics_jax.inference.decoder import Burst

SEPARATOR = "\n\n"


def stream_text(prompts: Sequence[str], bursts: Iterable[Burst], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields pieces of text to print one after the other: each prompt with its continuation, separated by blank lines.

    The texts are in the order of the prompts. The first text that is not finished is yielded while it is generated; the
    texts behind it, which are generated at the same time, are kept until it ends. No piece ends within a character.
    """
    decoders = [StreamDecoder(tokenizer) for _ in prompts]
    unprinted = list(prompts)
    current = 0  # the text that is being printed

    def next_piece() -> str:
        piece, unprinted[current] = unprinted[current], ""
        return piece

    yield next_piece()
    for burst in bursts:
        for row, tokens in enumerate(burst.tokens):
            unprinted[row] += "".join(map(decoders[row].push, tokens))
            if not burst.alive[row]:
                unprinted[row] += decoders[row].flush()
        piece = next_piece()
        while not burst.alive[current] and current + 1 < len(prompts):
            current += 1
            piece += SEPARATOR + next_piece()
        yield piece
