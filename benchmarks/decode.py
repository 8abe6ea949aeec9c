"""Speed of generation at the `small` size: 4 blocks, 4 heads, 256 wide, 896 persistent slots, V 8192, one prompt.

    python -m benchmarks.decode [--out=decode.json]

Weights are random, as speed does not depend on them. Medians of 5 after 2. Two contexts: 200 tokens after a prompt of
16, and 200 tokens that end at position 8192. The peers, in the same run: a GPT-2 of that size with stored keys and
values, and the mosaic run over its whole context again for each token, as the authors' code does.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import REPEATS, report, timed
from experiments import entry
from mosaics_jax.inference import Sampling, decodable, decoder
from mosaics_jax.inference.memories import remember
from mosaics_jax.inference.sampling import prompt_keys
from mosaics_jax.models import GPT2, GPT2Config, LanguageModel, MemoryMosaic, MosaicConfig
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.progress import say

NEW = flags.DEFINE_integer("new_tokens", 200, "tokens generated in a run", lower_bound=1)
SIZE: dict[str, Any] = {"vocab_size": 8192, "n_layer": 4, "n_head": 4, "n_embd": 256}
MODELS: dict[str, LanguageModel] = {
    "mosaic": MemoryMosaic(MosaicConfig(**SIZE, pmem_size=896)),
    "gpt2": GPT2(GPT2Config(**SIZE, context_length=8192)),
}
FIRST_PROMPT = 16
LAST_POSITION = 8192
WHOLE_CONTEXT = 256


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for name, model in MODELS.items():
        params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
        for prompt_length in (FIRST_PROMPT, LAST_POSITION - NEW.value):
            rows.append({"model": name, "context": prompt_length + NEW.value, **decoding(model, params, prompt_length)})
            say("  ".join(table(rows)[-1]))
        if name == "mosaic":
            rows.append({"model": "mosaic, whole context again", "context": WHOLE_CONTEXT, **whole(model, params)})
            say("  ".join(table(rows)[-1]))
    report(table(rows), {"new_tokens": NEW.value, "repeats": REPEATS.value, "rows": rows})


def decoding(model: LanguageModel, params: Params, prompt_length: int) -> dict[str, Any]:
    """Feeding the prompt, and drawing the tokens after it, apart."""
    model, params = decodable(model, params)
    prompt = np.random.default_rng(0).integers(SIZE["vocab_size"], size=prompt_length).tolist()
    keep: list[Any] = []

    def feed() -> None:
        keep[:] = jax.block_until_ready(remember(model, params, [prompt]))

    feeding = timed(feed, REPEATS.value)

    def draw() -> None:
        memory, logits_BV = jax.tree.map(jnp.copy, keep)
        state = decoder.State(memory, logits_BV, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
        limit_B = np.array([NEW.value], np.int32)
        for _ in decoder.bursts(
            model, params, state, limit_B, prompt_keys(0, [prompt]), Sampling(), -1, SIZE["vocab_size"]
        ):
            pass

    return {"prompt_s": round(statistics.median(feeding), 4), **rates(NEW.value, timed(draw, REPEATS.value))}


def whole(model: LanguageModel, params: Params) -> dict[str, Any]:
    """One token, the most probable, from the parallel forward over the whole context."""

    @jax.jit
    def next_token(params: Params, tokens_BT: Array) -> Array:
        logits_BTV: Array = model.apply({"params": params}, tokens_BT)  # type: ignore[assignment]
        return jnp.argmax(logits_BTV[0, -1])

    tokens_BT = jnp.zeros((1, WHOLE_CONTEXT), jnp.int32)
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
