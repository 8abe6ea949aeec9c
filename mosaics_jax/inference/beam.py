"""Beam search: the continuations of a prompt with the largest mean log-probability a token.

Shapes here: Q prompts, W hypotheses of each; row q W + w of a batch belongs to hypothesis w of prompt q (B = Q W).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mosaics_jax.errors import UserError
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
from mosaics_jax.models import LanguageModel
from mosaics_jax.nn.memory import Memory
from mosaics_jax.shapes import Array, Params


class Hypothesis(NamedTuple):
    """A continuation without its end token; score: mean log-probability a token in nats, including the end token."""

    tokens: list[int]
    score: float


class Beams(NamedTuple):
    """The hypotheses of each prompt, best first.

    logits_BV: of the next token. tokens_QWT: -1 after the last token. sum_QW: summed log-probability in nats, of
    count_QW tokens. alive_QW: whether the hypothesis goes on.
    """

    memory: Memory
    logits_BV: Array
    tokens_QWT: Array
    sum_QW: Array
    count_QW: Array
    alive_QW: Array


def beam_search(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_tokens: int = 200,
    end: int | None = None,
    vocab_size: int | None = None,
) -> list[list[Hypothesis]]:
    """Up to ``beams`` continuations of every prompt, best first; one beam gives the greedy continuation.

    A hypothesis that has ended stays in the beam while its score is among the best. Arguments and errors are those of
    `stream`.
    """
    if beams < 1:
        raise UserError(f"beam={beams} must be at least 1")
    vocab_size = vocab_size or model.config.vocab_size
    check_prompts(model, prompts, vocab_size)
    limit_Q = np.array([longest_continuation(model, len(prompt), max_tokens) for prompt in prompts], np.int32)
    if not limit_Q.any():
        return [[Hypothesis([], 0.0)] for _ in prompts]
    model, params = decodable(model, params)
    fed, left, end = max(map(len, prompts)), int(limit_Q.max()), -1 if end is None else end
    with one_device():
        state = _first(beams, max_tokens, *feed_prompts(model, params, prompts), limit_Q)
        while left and np.asarray(state.alive_QW).any():
            if fed == capacity_of(state.memory):
                state = state._replace(memory=grow(state.memory, 2 * fed))
            steps = min(left, capacity_of(state.memory) - fed)
            state = _search(model, vocab_size, params, state, limit_Q, end, steps)
            fed, left = fed + steps, left - steps
    tokens_QWT, sum_QW, count_QW = map(np.asarray, (state.tokens_QWT, state.sum_QW, state.count_QW))
    return [
        [
            Hypothesis([int(token) for token in tokens if token >= 0], float(total / count))
            for tokens, total, count in zip(*rows, strict=True)
            if np.isfinite(total)
        ]
        for rows in zip(tokens_QWT, sum_QW, count_QW, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(beams: int, max_tokens: int, memory: Memory, logits_BV: Array, limit_Q: Array) -> Beams:
    """One empty hypothesis for each prompt; the others have probability 0."""
    shape = (len(logits_BV), beams)
    return Beams(
        jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), memory),
        jnp.repeat(logits_BV, beams, axis=0),
        jnp.full((*shape, max_tokens), -1, jnp.int32),
        jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), shape),
        jnp.zeros(shape, jnp.int32),
        jnp.broadcast_to(limit_Q[:, None] > 0, shape),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _search(
    model: LanguageModel, vocab_size: int, params: Params, state: Beams, limit_Q: Array, end: Array, steps: Array
) -> Beams:
    """Extends every hypothesis that is alive by up to ``steps`` tokens."""
    prompts, beams, _ = state.tokens_QWT.shape

    def step(carry: tuple[Array, Beams]) -> tuple[Array, Beams]:
        i, state = carry
        log_BV = jax.nn.log_softmax(state.logits_BV[:, :vocab_size])
        sum_QWV = state.sum_QW[..., None] + log_BV.reshape(prompts, beams, vocab_size)
        # A hypothesis that has ended has one successor, itself, which is kept in the column of token 0.
        unchanged_QWV = jnp.where(jnp.arange(vocab_size) == 0, state.sum_QW[..., None], -jnp.inf)
        sum_QWV = jnp.where(state.alive_QW[..., None], sum_QWV, unchanged_QWV)
        count_QW = state.count_QW + state.alive_QW
        score_QWV = sum_QWV / jnp.maximum(count_QW, 1)[..., None]
        _, choice_QW = lax.top_k(score_QWV.reshape(prompts, -1), beams)
        parent_QW, token_QW = choice_QW // vocab_size, choice_QW % vocab_size

        sum_QW = jnp.take_along_axis(sum_QWV.reshape(prompts, -1), choice_QW, axis=1)
        count_QW, alive_QW = (jnp.take_along_axis(a, parent_QW, axis=1) for a in (count_QW, state.alive_QW))
        tokens_QWT = jnp.take_along_axis(state.tokens_QWT, parent_QW[..., None], axis=1)
        alive_QW &= token_QW != end
        # All hypotheses that are alive have the same length.
        last = jnp.max(jnp.where(alive_QW, count_QW, 1)) - 1
        new_QW1 = jnp.where(alive_QW, token_QW, lax.dynamic_index_in_dim(tokens_QWT, last, 2, keepdims=False))[
            ..., None
        ]
        tokens_QWT = lax.dynamic_update_slice(tokens_QWT, new_QW1, (0, 0, last))

        row_B = (jnp.arange(prompts)[:, None] * beams + parent_QW).reshape(-1)
        memory = lax.cond(
            jnp.all(row_B == jnp.arange(len(row_B))),
            lambda memory: memory,
            lambda memory: jax.tree.map(lambda leaf: leaf[row_B], memory),
            unfold_batch(state.memory),
        )
        alive_B = alive_QW.reshape(-1)
        logits_BV, memory = extend(model, params, token_QW.reshape(-1, 1), memory, alive_B.astype(jnp.int32))
        alive_QW &= count_QW < limit_Q[:, None]
        return i + 1, Beams(fold_batch(memory), logits_BV, tokens_QWT, sum_QW, count_QW, alive_QW)

    def goes_on(carry: tuple[Array, Beams]) -> Array:
        i, state = carry
        return (i < steps) & jnp.any(state.alive_QW)

    start = (jnp.zeros((), jnp.int32), state._replace(memory=fold_batch(state.memory)))
    _, state = lax.while_loop(goes_on, step, start)
    return state._replace(memory=unfold_batch(state.memory))
