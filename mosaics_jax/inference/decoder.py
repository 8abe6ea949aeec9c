"""Generation by sampling, for several prompts at once, in bursts.

A burst is a loop of steps inside one compiled call. Between bursts the new tokens are yielded, and memories that are
full grow. The generated tokens depend neither on the lengths of bursts nor on the other prompts.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.inference.memories import (
    capacity_of,
    check_prompts,
    decodable,
    extend,
    feed_prompts,
    fold_batch,
    grow,
    longest_continuation,
    one_device,
    unfold_batch,
)
from mosaics_jax.inference.sampling import Sampling, draw, prompt_keys
from mosaics_jax.models import LanguageModel
from mosaics_jax.nn.memory import Memory
from mosaics_jax.shapes import Array, Params

BURST = 32  # largest number of steps in a burst
BURST_SECONDS = 0.05  # approximate duration of a burst, so that text appears steadily
DEFAULT_SAMPLING = Sampling()


class State(NamedTuple):
    """What a step reads and changes.

    logits_BV: of each row's next token. count_B: tokens generated so far. alive_B: whether the row goes on.
    """

    memory: Memory
    logits_BV: Array
    count_B: Array
    alive_B: Array


class Burst(NamedTuple):
    """The result of one compiled call.

    tokens: the new tokens of each prompt. alive: which prompts go on. seconds: duration. compiled: whether the duration
    may include compilation, as in the first call for each capacity of the memories.
    """

    tokens: list[list[int]]
    alive: list[bool]
    seconds: float
    compiled: bool


def generate(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    **options: Any,
) -> list[list[int]]:
    """The continuation of every prompt, as tokens. Options are those of `stream`."""
    rows: list[list[int]] = [[] for _ in prompts]
    for burst in stream(model, params, prompts, **options):
        for row, tokens in zip(rows, burst.tokens, strict=True):
            row += tokens
    return rows


def stream(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = 200,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    end: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[Burst]:
    """Continues every prompt, and yields the new tokens in bursts.

    ``model`` and ``params``: as in training, scanned and sharded or not, or as `decodable` returned them. ``end``: the
    token that ends a continuation; it is not part of it. ``vocab_size``: the tokenizer's, if the model has more rows;
    tokens beyond it are never drawn. A mosaic continues past its training context; GPT-2 stops at its last learned
    position (`longest_continuation`). Raises UserError for prompts that cannot be continued. A call with the shapes of
    an earlier call compiles nothing.
    """
    vocab_size = vocab_size or model.config.vocab_size
    check_prompts(model, prompts, vocab_size)
    limit_B = np.array([longest_continuation(model, len(prompt), max_tokens) for prompt in prompts], np.int32)
    if not limit_B.any():
        return iter(())
    model, params = decodable(model, params)
    with one_device():
        memory, logits_BV = feed_prompts(model, params, prompts)
        state = State(memory, logits_BV, jnp.zeros(len(prompts), jnp.int32), jnp.asarray(limit_B > 0))
        key_B = prompt_keys(seed, prompts)
    return bursts(model, params, state, limit_B, key_B, sampling, -1 if end is None else end, vocab_size)


def bursts(
    model: LanguageModel,
    params: Params,
    state: State,
    limit_B: np.ndarray,
    key_B: Array,
    sampling: Sampling,
    end: int,
    vocab_size: int,
) -> Iterator[Burst]:
    """Continues ``state``, whose arrays are donated, until every row has ended or has ``limit_B`` tokens."""
    fed = int(np.asarray(state.memory.length_B).max())
    left = int(np.max(limit_B))
    capacity = 0  # of the memories in the last call
    step_seconds = BURST_SECONDS
    alive = [True]
    while left and any(alive):
        began = time.perf_counter()
        with one_device():
            if fed == capacity_of(state.memory):
                state = state._replace(memory=grow(state.memory, 2 * fed))
            compiled = capacity != capacity_of(state.memory)
            capacity = capacity_of(state.memory)
            steps = 1 if compiled else min(BURST, capacity - fed, left, max(1, int(BURST_SECONDS / step_seconds)))
            tokens_BT, state = _burst(model, sampling, vocab_size, params, state, key_B, limit_B, end, steps)
        tokens = [[int(token) for token in row if token >= 0] for row in np.asarray(tokens_BT)]
        alive = np.asarray(state.alive_B).tolist()
        seconds = time.perf_counter() - began
        if not compiled:
            step_seconds = seconds / steps
        fed, left = fed + steps, left - steps
        yield Burst(tokens, alive, seconds, compiled)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _burst(
    model: LanguageModel,
    sampling: Sampling,
    vocab_size: int,
    params: Params,
    state: State,
    key_B: Array,
    limit_B: Array,
    end: Array,
    steps: Array,
) -> tuple[Array, State]:
    """Generates up to ``steps`` tokens of every row. Returns them, (B, BURST) with -1 for none, and the state."""

    def step(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
        i, tokens_BT, state = carry
        key_now_B = jax.vmap(jax.random.fold_in)(key_B, state.count_B)
        token_B = draw(key_now_B, state.logits_BV[:, :vocab_size], sampling)
        alive_B = state.alive_B & (token_B != end)
        tokens_BT = lax.dynamic_update_slice(tokens_BT, jnp.where(alive_B, token_B, -1)[:, None], (0, i))
        count_B = state.count_B + alive_B
        logits_BV, memory = extend(
            model, params, token_B[:, None], unfold_batch(state.memory), alive_B.astype(jnp.int32)
        )
        return i + 1, tokens_BT, State(fold_batch(memory), logits_BV, count_B, alive_B & (count_B < limit_B))

    def goes_on(carry: tuple[Array, Array, State]) -> Array:
        i, _, state = carry
        return (i < steps) & jnp.any(state.alive_B)

    tokens_BT = jnp.full((len(key_B), BURST), -1, jnp.int32)
    carry = (jnp.zeros((), jnp.int32), tokens_BT, state._replace(memory=fold_batch(state.memory)))
    _, tokens_BT, state = lax.while_loop(goes_on, step, carry)
    return tokens_BT, state._replace(memory=unfold_batch(state.memory))
