"""Beam search against greedy decoding, against all continuations, and against the parallel forward."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.inference import Sampling, beam_search, generate

END = 2
PROMPTS = [[1], list(range(20)), [5, 4, 3, 2, 1, 0]]


@pytest.mark.parametrize("name", ["mosaic", "gpt2"])
def test_one_beam_is_greedy(networks, name):
    model, params = networks(name)
    for end in (None, END):
        greedy = generate(model, params, PROMPTS, max_tokens=20, sampling=Sampling(temperature=0), end=end)
        found = beam_search(model, params, PROMPTS, beams=1, max_tokens=20, end=end)
        assert [hypotheses[0].tokens for hypotheses in found] == greedy


def test_wide_enough_it_finds_the_best_of_all_continuations(networks):
    model, params = networks("mosaic")
    vocabulary, steps, prompt = 4, 4, [3, 0, 1]
    # The parallel forward over the same few tokens.
    cut = params | {name: params[name][:vocabulary] for name in ("embedding", "head")}
    small = type(model)(dataclasses.replace(model.config, vocab_size=vocabulary))
    others = [token for token in range(vocabulary) if token != END]
    every = [list(c) for c in itertools.product(others, repeat=steps)]
    every += [[*c, END] for n in range(steps) for c in itertools.product(others, repeat=n)]
    padded = np.array([prompt + c + [0] * (steps - len(c)) for c in every])
    log = np.asarray(jax.nn.log_softmax(jax.jit(small.apply)({"params": cut}, padded)))[:, len(prompt) - 1 :]
    scores = [np.mean([log[i, t, token] for t, token in enumerate(c)]) for i, c in enumerate(every)]
    order = np.argsort(scores)[::-1]
    (found,) = beam_search(model, params, [prompt], beams=len(every), max_tokens=steps, end=END, vocab_size=vocabulary)
    assert len(found) == len(every)
    for hypothesis, best in zip(found[:10], order, strict=False):
        assert hypothesis.tokens == [token for token in every[best] if token != END]
        assert hypothesis.score == pytest.approx(scores[best], abs=1e-5)


@pytest.mark.parametrize("name", ["mosaic", "gpt2"])
def test_memories_follow_their_hypotheses(networks, parallel, name):
    """The accumulated score is that of the resulting tokens, for prompts of several lengths, past a doubling."""
    model, params = networks(name)
    found = beam_search(model, params, PROMPTS, beams=3, max_tokens=20, end=END)
    for prompt, hypotheses in zip(PROMPTS, found, strict=True):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert len({tuple(h.tokens) for h in hypotheses}) == 3
        drawn = [[*tokens, END] if len(tokens) < 20 else tokens for tokens, _ in hypotheses]
        expected = parallel(model, params, [prompt + tokens for tokens in drawn])
        for (_, score), tokens, logits_TV in zip(hypotheses, drawn, expected, strict=True):
            log = np.asarray(jax.nn.log_softmax(logits_TV[len(prompt) - 1 : -1]))
            assert score == pytest.approx(np.mean(log[np.arange(len(tokens)), tokens]), abs=1e-5)


def test_prompts_are_searched_each_by_itself(networks):
    model, params = networks("mosaic")
    found = beam_search(model, params, PROMPTS, beams=3, max_tokens=20, end=END)
    others = beam_search(model, params, [PROMPTS[2], [7], PROMPTS[1]], beams=3, max_tokens=20, end=END)
    for hypotheses, again in ((found[1], others[2]), (found[2], others[0])):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in again]


def test_gpt2_stops_at_the_last_learned_position(networks):
    model, params = networks("gpt2")
    found = beam_search(model, params, [[1] * 158, [1] * 140], beams=2, max_tokens=10)
    assert [[len(h.tokens) for h in hypotheses] for hypotheses in found] == [[3, 3], [10, 10]]


def test_refuses_no_beams(networks):
    with pytest.raises(UserError, match="beam=0 must be at least 1"):
        beam_search(*networks("mosaic"), [[1]], beams=0)
