"""Beam search: the continuations of a prompt with the largest mean log-probability a token."""

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
    fold_batch,
    grow,
    longest_continuation,
    one_device,
    remember,
    unfold_batch,
)
from mosaics_jax.models import LanguageModel
from mosaics_jax.nn.memory import Memory
from mosaics_jax.shapes import Array, Params


class Hypothesis(NamedTuple):
    """A continuation without its end, and its mean log-probability a token in nats, a reached end counted in."""

    tokens: list[int]
    score: float


class Beams(NamedTuple):
    """P prompts with W hypotheses each, best first; row p W + w of the memory belongs to hypothesis w of prompt p.

    tokens_PWT: -1 past the last one. sum_PW: summed log-probability. count_PW: tokens in that sum.
    """

    memory: Memory
    logits_BV: Array
    tokens_PWT: Array
    sum_PW: Array
    count_PW: Array
    alive_PW: Array


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
    """Up to ``beams`` continuations of every prompt, best first; with one beam the greedy one.

    A hypothesis that has ended keeps its place while its score is among the best. Arguments as `stream`, and UserError
    likewise.
    """
    if beams < 1:
        raise UserError(f"beam={beams} must be at least 1")
    vocab_size = vocab_size or model.config.vocab_size
    check_prompts(model, prompts, vocab_size)
    limit_P = np.array([longest_continuation(model, len(prompt), max_tokens) for prompt in prompts], np.int32)
    if not limit_P.any():
        return [[Hypothesis([], 0.0)] for _ in prompts]
    model, params = decodable(model, params)
    fed, left, end = max(map(len, prompts)), int(limit_P.max()), -1 if end is None else end
    with one_device():
        state = _first(beams, max_tokens, *remember(model, params, prompts), limit_P)
        while left and np.asarray(state.alive_PW).any():
            if fed == capacity_of(state.memory):
                state = state._replace(memory=grow(state.memory, 2 * fed))
            steps = min(left, capacity_of(state.memory) - fed)
            state = _search(model, vocab_size, params, state, limit_P, end, steps)
            fed, left = fed + steps, left - steps
    tokens_PWT, sum_PW, count_PW = map(np.asarray, (state.tokens_PWT, state.sum_PW, state.count_PW))
    return [
        [
            Hypothesis([int(token) for token in tokens if token >= 0], float(total / count))
            for tokens, total, count in zip(*rows, strict=True)
            if np.isfinite(total)
        ]
        for rows in zip(tokens_PWT, sum_PW, count_PW, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(beams: int, max_tokens: int, memory: Memory, logits_BV: Array, limit_P: Array) -> Beams:
    """One hypothesis a prompt, and the others impossible."""
    shape = (len(logits_BV), beams)
    return Beams(
        jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), memory),
        jnp.repeat(logits_BV, beams, axis=0),
        jnp.full((*shape, max_tokens), -1, jnp.int32),
        jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf), shape),
        jnp.zeros(shape, jnp.int32),
        jnp.broadcast_to(limit_P[:, None] > 0, shape),
    )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _search(
    model: LanguageModel, vocab_size: int, params: Params, state: Beams, limit_P: Array, end: Array, steps: Array
) -> Beams:
    """Up to ``steps`` steps of every hypothesis that is alive."""
    prompts, beams, _ = state.tokens_PWT.shape

    def step(carry: tuple[Array, Beams]) -> tuple[Array, Beams]:
        i, state = carry
        log_BV = jax.nn.log_softmax(state.logits_BV[:, :vocab_size])
        sum_PWV = state.sum_PW[..., None] + log_BV.reshape(prompts, beams, vocab_size)
        # One that has ended has a single successor, itself, kept in the column of token 0.
        itself_PWV = jnp.where(jnp.arange(vocab_size) == 0, state.sum_PW[..., None], -jnp.inf)
        sum_PWV = jnp.where(state.alive_PW[..., None], sum_PWV, itself_PWV)
        count_PW = state.count_PW + state.alive_PW
        score_PWV = sum_PWV / jnp.maximum(count_PW, 1)[..., None]
        _, choice_PW = lax.top_k(score_PWV.reshape(prompts, -1), beams)
        parent_PW, token_PW = choice_PW // vocab_size, choice_PW % vocab_size

        sum_PW = jnp.take_along_axis(sum_PWV.reshape(prompts, -1), choice_PW, axis=1)
        count_PW, alive_PW = (jnp.take_along_axis(a, parent_PW, axis=1) for a in (count_PW, state.alive_PW))
        tokens_PWT = jnp.take_along_axis(state.tokens_PWT, parent_PW[..., None], axis=1)
        alive_PW &= token_PW != end
        # Hypotheses that are alive have all the same length.
        last = jnp.max(jnp.where(alive_PW, count_PW, 1)) - 1
        new_PW1 = jnp.where(alive_PW, token_PW, lax.dynamic_index_in_dim(tokens_PWT, last, 2, keepdims=False))[
            ..., None
        ]
        tokens_PWT = lax.dynamic_update_slice(tokens_PWT, new_PW1, (0, 0, last))

        row_B = (jnp.arange(prompts)[:, None] * beams + parent_PW).reshape(-1)
        memory = lax.cond(
            jnp.all(row_B == jnp.arange(len(row_B))),
            lambda memory: memory,
            lambda memory: jax.tree.map(lambda leaf: leaf[row_B], memory),
            unfold_batch(state.memory),
        )
        alive_B = alive_PW.reshape(-1)
        logits_BV, memory = extend(model, params, token_PW.reshape(-1, 1), memory, alive_B.astype(jnp.int32))
        alive_PW &= count_PW < limit_P[:, None]
        return i + 1, Beams(fold_batch(memory), logits_BV, tokens_PWT, sum_PW, count_PW, alive_PW)

    def goes_on(carry: tuple[Array, Beams]) -> Array:
        i, state = carry
        return (i < steps) & jnp.any(state.alive_PW)

    start = (jnp.zeros((), jnp.int32), state._replace(memory=fold_batch(state.memory)))
    _, state = lax.while_loop(goes_on, step, start)
    return state._replace(memory=unfold_batch(state.memory))
