"""Generated tokens as text, while they come."""

from collections.abc import Iterable, Iterator, Sequence

from mosaics_jax.data.tokenizers import StreamDecoder, Tokenizer
from mosaics_jax.inference.decoder import Burst

BETWEEN = "\n\n"


def stories_in_order(prompts: Sequence[str], bursts: Iterable[Burst], tokenizer: Tokenizer) -> Iterator[str]:
    """Pieces of text to print one after the other: each prompt and its continuation, a blank line between two.

    The first story that is not finished comes as it is generated; those behind it, generated at the same time, wait for
    their turn. A piece never ends within a character.
    """
    decoders = [StreamDecoder(tokenizer) for _ in prompts]
    waiting = list(prompts)
    shown = 0

    def take() -> str:
        piece, waiting[shown] = waiting[shown], ""
        return piece

    yield take()
    for burst in bursts:
        for row, tokens in enumerate(burst.tokens):
            waiting[row] += "".join(map(decoders[row].push, tokens))
            if not burst.alive[row]:
                waiting[row] += decoders[row].flush()
        piece = take()
        while not burst.alive[shown] and shown + 1 < len(prompts):
            shown += 1
            piece += BETWEEN + take()
        yield piece
