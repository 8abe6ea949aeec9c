"""Random probabilistic automata and problems made of their words (RegBench: v1 section 6.3, arXiv 2401.12973).

An automaton starts in state 0 and accepts in every state. A state has 1 to 3 edges, which are equally likely. A problem
is a sequence of words of one automaton with separators between them; a model must learn the automaton in context.

Automaton i and problem i of a seed depend on the seed and i only, so that any process can make them in any order.

Token ids: 0 is padding, 1 to 18 are the symbols a to r, and 19 is the separator.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mosaics_jax.data.random_bits import AUTOMATON_STREAM, PROBLEM_STREAM, RandomChoices
from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

PAD, SEPARATOR, VOCAB_SIZE = 0, 19, 20
SYMBOLS = 18

Edges = tuple[tuple[tuple[int, int], ...], ...]  # for each state, its sorted pairs (symbol, target state)


@dataclasses.dataclass(frozen=True)
class AutomataConfig:
    """The automata that are drawn, before minimisation, and the length of their problems. Ranges are inclusive."""

    min_states: int = setting(4, "least states of an automaton, before minimisation")
    max_states: int = setting(12, "most states of an automaton, before minimisation")
    min_symbols: int = setting(4, "least symbols in an automaton's alphabet")
    max_symbols: int = setting(SYMBOLS, "most symbols in an automaton's alphabet")
    max_edges: int = setting(3, "most edges that leave a state")
    min_words: int = setting(10, "least words in a problem")
    max_words: int = setting(19, "most words in a problem")
    max_word_length: int = setting(49, "most symbols in a word; the least is 1")

    def __post_init__(self) -> None:
        for name, least in (("states", 2), ("symbols", 1), ("words", 2)):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not least <= low <= high:
                raise ValueError(f"min_{name}={low} and max_{name}={high} must be in order, and at least {least}")
        if self.max_symbols > SYMBOLS:
            raise ValueError(f"max_symbols={self.max_symbols}: there are {SYMBOLS} symbols, a to r")
        if self.max_edges < 1 or self.max_word_length < 1:
            raise ValueError("max_edges and max_word_length must be at least 1")
        if self.max_edges >= self.min_states or self.max_edges > self.min_symbols:
            raise ValueError(
                f"max_edges={self.max_edges} needs as many symbols and as many other states as targets: "
                f"min_symbols={self.min_symbols} must not be below it, min_states={self.min_states} must be above it"
            )


@dataclasses.dataclass(frozen=True)
class Automaton:
    """A minimal automaton in canonical form: two automata are equal exactly if they accept the same words.

    States are numbered in the order of a breadth-first search from the start that follows edges in the order of their
    symbols. Made by `canonical` and `draw_automaton`.
    """

    edges: Edges

    def accepts(self, word: Sequence[int]) -> bool:
        """Whether the symbols of ``word`` (ids 1 to 18) can be read one after the other from the start."""
        state = 0
        for symbol in word:
            targets = dict(self.edges[state])
            if symbol not in targets:
                return False
            state = targets[symbol]
        return True

    def transitions(self, states: int | None = None) -> np.ndarray:
        """int8 (states, V): the state that each token leads to, or -1. Extra ``states`` are rows of -1."""
        table = np.full((states or len(self.edges), VOCAB_SIZE), -1, np.int8)
        for state, edges in enumerate(self.edges):
            for symbol, target in edges:
                table[state, symbol] = target
        return table


def canonical(edges: Sequence[dict[int, int]]) -> Automaton:
    """The minimal automaton that accepts the same words as the automaton with ``edges``.

    ``edges`` maps symbols to targets for each state; state 0 is the start. Every state needs an edge. All states then
    accept, and two states differ only in the words that cannot be read from them.
    """
    # Moore's refinement: states stay in one group while their edges read the same symbols into the same groups.
    group = [0] * len(edges)
    groups = 0
    while True:
        signatures = [tuple(sorted((symbol, group[target]) for symbol, target in out.items())) for out in edges]
        numbers: dict[tuple[tuple[int, int], ...], int] = {}
        group = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        if len(numbers) == groups:
            break
        groups = len(numbers)
    # The search visits one state of each group; groups that it does not reach are dropped.
    number_of_group = {group[0]: 0}
    queue = collections.deque([0])
    minimal = []
    while queue:
        out = []
        for symbol, target in sorted(edges[queue.popleft()].items()):
            if group[target] not in number_of_group:
                number_of_group[group[target]] = len(number_of_group)
                queue.append(target)
            out.append((symbol, number_of_group[group[target]]))
        minimal.append(tuple(out))
    return Automaton(tuple(minimal))


def draw_automaton(config: AutomataConfig, seed: int, index: int) -> Automaton:
    """Automaton number ``index`` of ``seed``, minimised.

    Before minimisation, the number of states, the alphabet, and the 1 to max_edges edges of each state are uniform. The
    edges of a state have different symbols and different targets, and none leads to the state itself.
    """
    choices = RandomChoices(seed, index, AUTOMATON_STREAM)
    states = choices.between(config.min_states, config.max_states)
    alphabet = choices.sample(range(1, SYMBOLS + 1), choices.between(config.min_symbols, config.max_symbols))
    edges = []
    for state in range(states):
        count = choices.between(1, config.max_edges)
        others = [target for target in range(states) if target != state]
        edges.append(dict(zip(choices.sample(alphabet, count), choices.sample(others, count), strict=True)))
    return canonical(edges)


def draw_problem(automaton: Automaton, config: AutomataConfig, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Problem number ``index`` of ``seed`` from ``automaton``: tokens and states, uint8 (T,) each.

    The state at a position is that of the automaton after the token there; a separator leads to the start. The problem
    does not end with a separator.
    """
    choices = RandomChoices(seed, index, PROBLEM_STREAM)
    tokens, states = [], []
    for _ in range(choices.between(config.min_words, config.max_words)):
        state = 0
        for _ in range(choices.between(1, config.max_word_length)):
            out = automaton.edges[state]
            symbol, state = out[choices.below(len(out))]
            tokens.append(symbol)
            states.append(state)
        tokens.append(SEPARATOR)
        states.append(0)
    return np.array(tokens[:-1], np.uint8), np.array(states[:-1], np.uint8)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: the inputs and targets of a model, and the true distributions for scores.

    At position t the model has read inputs 0 to t and predicts the token at t + 1.

    inputs         int32 (T,): all tokens of the problem but the last
    targets        int32 (T,): all tokens but the first; IGNORED instead of separators, which cannot be predicted
    distributions  float32 (T, V): the automaton's next symbol, uniform over the edges of the state at t

    The scores are those of the authors' code. Accuracy is taken over the positions that have a target: the first symbol
    of a word counts (at a separator, the next symbol starts from state 0), the first symbol of the problem does not.
    The largest of all V outputs is correct if the true probability of its token is above 0. The total variation
    distance, half the sum over V of absolute differences, is taken over all T positions. The ends of words count there
    as if the word continued, so that a model that predicts separators has a distance at these positions.
    """

    inputs: np.ndarray
    targets: np.ndarray
    distributions: np.ndarray


def as_problem(tokens: np.ndarray, states: np.ndarray, transitions: np.ndarray) -> Problem:
    """The Problem of tokens and states (T + 1,) from `draw_problem`, and transitions (states, V) of the automaton."""
    next_tokens = tokens[1:].astype(np.int32)
    allowed = transitions[states[:-1]] >= 0
    return Problem(
        inputs=tokens[:-1].astype(np.int32),
        targets=np.where(next_tokens == SEPARATOR, IGNORED, next_tokens).astype(np.int32),
        distributions=(allowed / allowed.sum(axis=-1, keepdims=True)).astype(np.float32),
    )
