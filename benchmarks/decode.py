"""Speed of generation, one prompt.

    python -m benchmarks.decode [--size=small] [--out=decode.json]
    python -m benchmarks.decode --size=published

`small`: 4 blocks, 4 heads, 256 wide, 896 persistent slots, V 8192; 200 tokens that end at position 216, and 200 that
end at 8192. `published`: 12 blocks, 12 heads, 768 wide, 2688 slots, V 50304; 200 tokens that end at 512. Weights are
random: speed does not depend on them. Times are medians of 5 runs after 2. Peers in the same run: a GPT-2 of that size
with stored keys and values, and the mosaic that processes its whole context, of 256 or 512, again for each token, as
the authors' code does.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import REPEATS, SIZES, build, report, timed
from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.inference import Sampling, decodable, decoder
from mosaics_jax.inference.memories import feed_prompts
from mosaics_jax.inference.sampling import prompt_keys
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.progress import say

NEW = flags.DEFINE_integer("new_tokens", 200, "tokens generated in a run", lower_bound=1)
SIZE = flags.DEFINE_enum("size", "small", list(SIZES), "size of the models")
ENDS = {"small": (216, 8192), "published": (512,)}  # positions at which the new tokens end
WHOLE = {"small": 256, "published": 512}  # positions that are processed again for each token


def main(argv: list[str]) -> None:
    del argv
    ends = ENDS[SIZE.value]
    if NEW.value >= ends[0]:
        raise UserError(f"--new_tokens={NEW.value} must be less than {ends[0]}")
    rows = []
    for name in ("mosaic", "gpt2"):
        model = build(name, SIZE.value, context_length=ends[-1])
        params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
        for end in ends:
            rows.append({"model": name, "context": end, **decoding(model, params, end - NEW.value)})
            say("  ".join(table(rows)[-1]))
        if name == "mosaic":
            context = WHOLE[SIZE.value]
            rows.append({"model": "mosaic, whole context again", "context": context, **whole(model, params, context)})
            say("  ".join(table(rows)[-1]))
    report(table(rows), {"size": SIZE.value, "new_tokens": NEW.value, "repeats": REPEATS.value, "rows": rows})


def decoding(model: LanguageModel, params: Params, prompt_length: int) -> dict[str, Any]:
    """Times of feeding the prompt and of drawing the tokens after it."""
    model, params = decodable(model, params)
    prompt = np.random.default_rng(0).integers(model.config.vocab_size, size=prompt_length).tolist()
    keep: list[Any] = []

    def feed() -> None:
        keep[:] = jax.block_until_ready(feed_prompts(model, params, [prompt]))

    feeding = timed(feed, REPEATS.value)

    def draw() -> None:
        memory, logits_BV = jax.tree.map(jnp.copy, keep)
        state = decoder.State(memory, logits_BV, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
        limit_B = np.array([NEW.value], np.int32)
        for _ in decoder.bursts(
            model, params, state, limit_B, prompt_keys(0, [prompt]), Sampling(), -1, model.config.vocab_size
        ):
            pass

    return {"prompt_s": round(statistics.median(feeding), 4), **rates(NEW.value, timed(draw, REPEATS.value))}


def whole(model: LanguageModel, params: Params, context: int) -> dict[str, Any]:
    """Speed of drawing the most probable token by the parallel forward over the whole context."""

    @jax.jit
    def next_token(params: Params, tokens_BT: Array) -> Array:
        logits_BTV: Array = model.apply({"params": params}, tokens_BT)  # type: ignore[assignment]  # apply is untyped
        return jnp.argmax(logits_BTV[0, -1])

    tokens_BT = jnp.zeros((1, context), jnp.int32)
    return rates(1, timed(lambda: jax.block_until_ready(next_token(params, tokens_BT)), REPEATS.value))


def rates(tokens: int, seconds: list[float]) -> dict[str, float]:
    """Tokens a second: median, least and most."""
    rate = sorted(tokens / s for s in seconds)
    median, least, most = (round(value, 1) for value in (statistics.median(rate), rate[0], rate[-1]))
    return {"tokens_per_s": median, "least": least, "most": most}


def table(rows: list[dict[str, Any]]) -> Sequence[Sequence[str]]:
    """A line for each row, under a heading."""
    lines = [("model", "context", "prompt, s", "tokens/s", "least .. most")]
    for row in rows:
        prompt = f"{row['prompt_s']:.3f}" if "prompt_s" in row else ""
        span = f"{row['least']:,.0f} .. {row['most']:,.0f}"
        lines.append((row["model"], f"{row['context']:,}", prompt, f"{row['tokens_per_s']:,.0f}", span))
    return lines


if __name__ == "__main__":
    entry.run(main)
