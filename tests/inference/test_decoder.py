"""Generation against the parallel forward, and what it must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.inference import Sampling, decoder, generate, longest_continuation, memories, stream
from mosaics_jax.inference.sampling import draw, prompt_keys
from mosaics_jax.models import stack_layers

V = 23
TOLERANCE = 1e-5
LENGTHS = (1, 27, 21)  # of prompts: a bit of a chunk; chunks of both sizes
SOFT = Sampling(temperature=1.0)


def prompts_of(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(V, size=length).tolist() for length in lengths]


@pytest.mark.parametrize("name", ["mosaic", "options", "attn_only", "gpt2"])
def test_memories_answer_as_the_parallel_forward_at_every_position(networks, parallel, name):
    """Prompts of three lengths by chunks, then one token at a time past two doublings; one row pauses."""
    model, params = networks(name)
    prompts = prompts_of(LENGTHS)
    rows = [prompt + more for prompt, more in zip(prompts, prompts_of((100, 100, 100), seed=1), strict=True)]
    expected = parallel(model, params, rows)
    memory, logits_BV = memories.feed_prompts(model, params, prompts)
    assert memories.capacity_of(memory) == 32
    fed = np.array(LENGTHS)
    for row, length in enumerate(fed):
        np.testing.assert_allclose(logits_BV[row], expected[row][length - 1], atol=TOLERANCE)
    step = jax.jit(lambda memory, tokens_B1, valid_B: memories.extend(model, params, tokens_B1, memory, valid_B))
    for i in range(90):
        if fed.max() == memories.capacity_of(memory):
            memory = memories.grow(memory, 2 * memories.capacity_of(memory))
        valid_B = np.array([1, 1, i % 3 > 0], np.int32)
        logits_BV, memory = step(memory, np.array([[r[n]] for r, n in zip(rows, fed, strict=True)]), valid_B)
        fed = fed + valid_B
        for row in np.flatnonzero(valid_B):
            np.testing.assert_allclose(logits_BV[row], expected[row][fed[row] - 1], atol=TOLERANCE)
    assert memories.capacity_of(memory) == 128
    assert memory.length_B.tolist() == fed.tolist() == [91, 117, 81]


@pytest.mark.parametrize(("name", "lengths"), [("mosaic", (5,)), ("mosaic", LENGTHS), ("gpt2", LENGTHS)])
def test_generated_tokens_are_those_drawn_from_the_parallel_forward(networks, parallel, name, lengths):
    """With memories that double twice."""
    model, params = networks(name)
    prompts = prompts_of(lengths)
    rows = generate(model, params, prompts, max_tokens=100, sampling=SOFT, seed=7)
    expected = parallel(model, params, [prompt + row for prompt, row in zip(prompts, rows, strict=True)])
    for prompt, row, key, logits_TV in zip(prompts, rows, prompt_keys(7, prompts), expected, strict=True):
        key_T = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(100))
        assert row == draw(key_T, jnp.asarray(logits_TV[len(prompt) - 1 : -1]), SOFT).tolist()
        assert len(set(row)) > 5


def test_continuation_depends_on_its_own_prompt_alone(networks):
    model, params = networks("mosaic")
    first, second, third = prompts_of(LENGTHS)

    def continued(*prompts, **changes):
        return generate(model, params, prompts, **{"max_tokens": 30, "sampling": SOFT, "seed": 1} | changes)

    alone = [continued(prompt)[0] for prompt in (first, second, third)]
    assert continued(third, first, second) == [alone[2], alone[0], alone[1]]
    again = continued(first, first, third)
    assert again[0] == alone[0] and again[1] != alone[0]
    assert continued(first, seed=2)[0] != alone[0]
    assert continued(first, max_tokens=50)[0][:30] == alone[0]
    assert continued() == []


def test_rows_end_one_by_one_and_unknown_tokens_are_never_drawn(networks, monkeypatch):
    model, params = networks("mosaic")
    prompts = [[token] for token in range(8)]
    free = generate(model, params, prompts, max_tokens=30, sampling=SOFT, vocab_size=9)
    assert {token for row in free for token in row} == set(range(9))
    monkeypatch.setattr(decoder, "BURST_SECONDS", 1e-9)  # bursts of one token
    bursts = list(stream(model, params, prompts, max_tokens=30, sampling=SOFT, vocab_size=9, end=4))
    stops = [row.index(4) if 4 in row else 30 for row in free]
    assert len(set(stops)) > 3
    for row, stop in enumerate(stops):
        assert [token for burst in bursts for token in burst.tokens[row]] == free[row][:stop]
        # Alive until the step that draws the end, or that draws the last token allowed.
        assert [burst.alive[row] for burst in bursts].index(False) == min(stop, 29)
    assert len(bursts) == min(30, 1 + max(stops))


def test_gpt2_stops_at_the_last_learned_position(networks, parallel):
    model, params = networks("gpt2")
    prompts = prompts_of((150, 160))
    rows = generate(model, params, prompts, max_tokens=50, sampling=Sampling(temperature=0))
    assert [len(row) for row in rows] == [11, 1] == [longest_continuation(model, n, 50) for n in (150, 160)]
    expected = parallel(model, params, [(prompt + row)[:160] for prompt, row in zip(prompts, rows, strict=True)])
    for prompt, row, logits_TV in zip(prompts, rows, expected, strict=True):
        assert row == logits_TV[len(prompt) - 1 :].argmax(-1).tolist()
    assert longest_continuation(networks("mosaic")[0], 10**6, 50) == 50


def test_refuses_prompts_that_cannot_be_continued(networks):
    model, params = networks("gpt2")
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate(model, params, [[1], []])
    with pytest.raises(UserError, match=r"the prompt has 161 tokens, .* learned 160 positions"):
        generate(model, params, [[1] * 161])
    with pytest.raises(UserError, match=r"token id outside 0\.\.9"):
        generate(model, params, [[10]], vocab_size=10)


def test_training_parameters_serve_and_compile_once(networks):
    """Parameters as the training loop has them: scanned, and new at every sample."""
    model, params = networks("mosaic")
    scanned = type(model)(dataclasses.replace(model.config, scan_layers=True, remat="full"))
    prompts = prompts_of(LENGTHS)
    expected = generate(model, params, prompts, max_tokens=20, sampling=SOFT)
    assert generate(scanned, stack_layers(params), prompts, max_tokens=20, sampling=SOFT) == expected
    compiled = decoder._burst._cache_size(), memories._feed._cache_size()
    changed = jax.tree.map(lambda leaf: -leaf, params)
    assert generate(scanned, stack_layers(changed), prompts, max_tokens=20, sampling=SOFT) != expected
    assert (decoder._burst._cache_size(), memories._feed._cache_size()) == compiled


def test_bfloat16_decodes_as_its_own_parallel_forward(networks, parallel):
    model, params = networks("mosaic")
    half = type(model)(dataclasses.replace(model.config, dtype="bfloat16"))
    (row,) = generate(half, params, [[1, 2, 3]], max_tokens=28, sampling=Sampling(temperature=0))
    logits_TV = parallel(half, params, [[1, 2, 3, *row]])[0][2:-1]
    # Rounding may turn a near tie, never more.
    assert np.all(logits_TV.max(-1) - logits_TV[np.arange(28), row] < 0.1)
