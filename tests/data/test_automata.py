"""Automata: minimisation, canonical form, the distribution of random automata, and scores of problems."""

import itertools

import numpy as np
import pytest

from mosaics_jax.data.automata import (
    SEPARATOR,
    AutomataConfig,
    as_problem,
    canonical,
    draw_automaton,
    draw_problem,
)
from mosaics_jax.shapes import IGNORED

CONFIG = AutomataConfig()
TEXT = ".abcdefghijklmnopqr|"  # the token ids 0 to 19 as characters


def random_edges(rng, states, symbols):
    """Any automaton without dead states; with few symbols, states are often equivalent."""
    edges = []
    for _ in range(states):
        read = rng.choice(np.arange(1, symbols + 1), rng.integers(1, symbols + 1), replace=False)
        edges.append({int(symbol): int(rng.integers(states)) for symbol in read})
    return edges


def language(edges, start, symbols, length):
    """All words of at most ``length`` symbols that can be read from ``start``."""
    words: set[tuple[int, ...]] = {()}
    frontier: dict[tuple[int, ...], int] = {(): start}
    for _ in range(length):
        frontier = {
            (*word, symbol): edges[state][symbol]
            for word, state in frontier.items()
            for symbol in range(1, symbols + 1)
            if symbol in edges[state]
        }
        words |= set(frontier)
    return words


@pytest.mark.parametrize(("states", "symbols"), [(1, 1), (3, 2), (6, 2), (9, 2), (5, 3)])
def test_minimisation_keeps_the_language(states, symbols):
    rng = np.random.default_rng(states)
    smaller = 0
    for _ in range(30):
        edges = random_edges(rng, states, symbols)
        automaton = canonical(edges)
        smaller += len(automaton.edges) < states
        length = 7 if symbols < 3 else 5
        words = language(edges, 0, symbols, length)
        for size in range(length + 1):
            for word in itertools.product(range(1, symbols + 1), repeat=size):
                assert automaton.accepts(word) == (word in words)
    assert smaller or states == 1


def test_minimal_automata_have_no_equivalent_and_no_unreachable_states():
    rng = np.random.default_rng(0)
    for trial in range(60):
        states = 3 + trial % 5
        automaton = canonical(random_edges(rng, states, 2))
        edges = [dict(out) for out in automaton.edges]
        # States that agree on all words shorter than the number of states agree on all words.
        languages = [frozenset(language(edges, state, 2, len(edges) - 1)) for state in range(len(edges))]
        assert len(set(languages)) == len(edges)
        reached = {0} | {target for out in edges for target in out.values()}
        assert reached == set(range(len(edges)))


def test_equal_languages_have_equal_forms():
    rng = np.random.default_rng(1)
    different = set()
    for trial in range(100):
        states = 3 + trial % 6
        edges = random_edges(rng, states, 3)
        # The same automaton with its states, except the start, in another order, ...
        names = [0, *(1 + rng.permutation(states - 1))]
        renamed: list[dict[int, int]] = [{}] * states
        for state, out in enumerate(edges):
            renamed[names[state]] = {symbol: int(names[out[symbol]]) for symbol in reversed(out)}
        # ... and with two copies of every state, where each edge leads to either copy.
        doubled = [
            {symbol: target + states * int(rng.integers(2)) for symbol, target in out.items()} for out in edges * 2
        ]
        automaton = canonical(edges)
        assert canonical(renamed) == automaton
        assert canonical(doubled) == automaton
        assert canonical([dict(out) for out in automaton.edges]) == automaton
        different.add(automaton)
    assert len(different) > 80


def test_known_automaton():
    # (ab)* and its prefixes, with four states where two suffice; state 4 is unreachable.
    edges = [{1: 1}, {2: 2}, {1: 3}, {2: 0}, {5: 0}]
    assert canonical(edges).edges == (((1, 1),), ((2, 0),))
    # The shortest word that distinguishes the first two states has three symbols.
    assert len(canonical([{1: 1}, {1: 2}, {1: 3}, {1: 3, 2: 3}]).edges) == 4


def test_statistics_are_those_of_the_authors_generator():
    # 2,000 automata and problems of the authors' code gave these means and spreads.
    automata = [draw_automaton(CONFIG, 0, index) for index in range(500)]
    problems = [draw_problem(automaton, CONFIG, 0, index)[0] for index, automaton in enumerate(automata)]
    tolerance = 4 * np.sqrt(1 / 500 + 1 / 2000)  # standard errors of the difference of two means

    states = np.array([len(automaton.edges) for automaton in automata])
    counts = np.array([5, 26, 69, 262, 282, 256, 264, 252, 231, 181, 126, 45])
    assert abs(states.mean() - 6.97) < tolerance * 2.6
    share, expected = np.bincount(states, minlength=13)[1:] / 500, counts / counts.sum()
    assert (abs(share - expected) < tolerance * np.sqrt(expected * (1 - expected))).all()

    edges = np.array([len(out) for automaton in automata for out in automaton.edges])
    assert abs(edges.mean() - 2.007) < tolerance * 0.82 / np.sqrt(states.mean())
    assert set(edges) == {1, 2, 3}
    symbols = np.array([len({symbol for out in automaton.edges for symbol, _ in out}) for automaton in automata])
    assert abs(symbols.mean() - 7.45) < tolerance * 2.7
    assert symbols.max() <= 18

    lengths = np.array([len(tokens) for tokens in problems])
    assert abs(lengths.mean() - 375) < tolerance * 92
    assert abs(lengths.std() - 92) < tolerance * 92 / np.sqrt(2)
    separators = sum((tokens == SEPARATOR).sum() for tokens in problems)
    assert separators / (lengths - 1).sum() == pytest.approx(0.036, abs=0.001)
    assert len(set(automata)) > 490


def test_drawn_automata_obey_the_config():
    config = AutomataConfig(4, 4, 3, 5, 3, 2, 3, 6)
    for index in range(300):
        automaton = draw_automaton(config, 1, index)
        assert len(automaton.edges) <= 4
        assert len({symbol for out in automaton.edges for symbol, _ in out}) <= 5
        assert all(1 <= symbol <= 18 for out in automaton.edges for symbol, _ in out)
        tokens, _ = draw_problem(automaton, config, 1, index)
        words = "".join(TEXT[token] for token in tokens).split("|")
        assert 2 <= len(words) <= 3
        assert all(1 <= len(word) <= 6 for word in words)


def test_problems_are_words_of_their_automaton():
    word_counts, word_lengths = set(), set()
    for index in range(200):
        automaton = draw_automaton(CONFIG, 5, index)
        tokens, states = draw_problem(automaton, CONFIG, 5, index)
        words = "".join(TEXT[token] for token in tokens).split("|")
        assert all(automaton.accepts([TEXT.index(char) for char in word]) for word in words)
        word_counts.add(len(words))
        word_lengths |= {len(word) for word in words}
        state = 0
        for token, after in zip(tokens.tolist(), states.tolist(), strict=True):
            state = 0 if token == SEPARATOR else dict(automaton.edges[state])[token]
            assert state == after
    assert word_counts == set(range(10, 20))
    assert word_lengths == set(range(1, 50))


def test_edges_are_drawn_uniformly():
    automaton = canonical([{1: 1, 2: 2, 3: 0}, {1: 0, 4: 2}, {5: 0}])
    counts = np.zeros((3, 20))
    for index in range(300):
        tokens, states = draw_problem(automaton, CONFIG, 0, index)
        before = np.concatenate([[0], states[:-1]])
        np.add.at(counts, (before, tokens), 1)
    counts[:, SEPARATOR] = 0
    share = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(share[0, 1:4], 1 / 3, atol=0.01)
    np.testing.assert_allclose(share[1, [1, 4]], 1 / 2, atol=0.01)


def test_a_problem_by_hand():
    automaton = canonical([{1: 1, 2: 0}, {3: 0}])  # from the start a or b, after a only c
    tokens = np.array([TEXT.index(char) for char in "ac|b|a"], np.uint8)
    states = np.array([1, 0, 0, 0, 0, 1], np.uint8)
    problem = as_problem(tokens, states, automaton.transitions(12))
    assert "".join(TEXT[token] for token in problem.inputs) == "ac|b|"
    np.testing.assert_array_equal(problem.targets, [3, IGNORED, 2, IGNORED, 1])
    expected = np.zeros((5, 20), np.float32)
    expected[0, 3] = 1  # after a
    expected[1:, 1:3] = 0.5  # after ac, as after |, b and |
    np.testing.assert_array_equal(problem.distributions, expected)


def test_scores():
    for index in range(20):
        automaton = draw_automaton(CONFIG, 2, index)
        tokens, states = draw_problem(automaton, CONFIG, 2, index)
        problem = as_problem(tokens, states, automaton.transitions())
        probabilities, scored = problem.distributions, problem.targets != IGNORED
        assert scored.sum() == (tokens != SEPARATOR).sum() - 1
        np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)
        # Every target has a probability above 0.
        assert (probabilities[scored, problem.targets[scored]] > 0).all()
        # The distance of the uniform distribution, computed word by word.
        distances = []
        for number, word in enumerate("".join(TEXT[token] for token in tokens).split("|")):
            for length in range(number == 0, len(word) + 1):
                state = 0
                for char in word[:length]:
                    state = dict(automaton.edges[state])[TEXT.index(char)]
                distances.append(1 - len(automaton.edges[state]) / 20)
        distances = distances[:-1]  # the last token has no next token
        expected = 0.5 * abs(probabilities - 1 / 20).sum(axis=-1)
        np.testing.assert_allclose(expected, distances, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_states": 13}, "in order"),
        ({"min_states": 3}, "min_states=3 must be above"),
        ({"min_symbols": 2}, "min_symbols=2 must not be below"),
        ({"max_symbols": 19}, "18 symbols"),
        ({"max_edges": 0}, "at least 1"),
        ({"min_words": 1}, "at least 2"),
        ({"max_word_length": 0}, "at least 1"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        AutomataConfig(**fields)
    assert "\n" not in str(caught.value)
