"""Random probabilistic automata and the problems made of their words (RegBench: v1 section 6.3, arXiv 2401.12973).

An automaton starts in state 0, accepts in all states, and goes on by one of the state's 1 to 3 edges, equally likely.
A problem is a row of words of one automaton with separators between them; what follows must be learned in context.

Automaton and problem number i of a seed are made of the bits of Philox under the key (seed, i): they depend on nothing
else, so that they can be made in any order and by any process.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

TEXT = ".abcdefghijklmnopqr|"  # the vocabulary: a token's id is its place
PAD, SEPARATOR, VOCAB_SIZE = 0, 19, 20
SYMBOLS = 18  # a..r, the ids 1 to 18

# What random bits are for. Different uses of one key never share bits.
AUTOMATON_BITS, PROBLEM_BITS, ORDER_BITS = range(3)

Edges = tuple[tuple[tuple[int, int], ...], ...]  # for each state, its (symbol, target), sorted


@dataclasses.dataclass(frozen=True)
class AutomataConfig:
    """Which automata are drawn, before they are minimised, and how long their problems are. Ranges are inclusive."""

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
                f"max_edges={self.max_edges} needs as many symbols and as many other states to go to: "
                f"min_symbols={self.min_symbols} must not be below it, min_states={self.min_states} must be above it"
            )


@dataclasses.dataclass(frozen=True)
class Automaton:
    """A minimal automaton in canonical form: two of them are equal exactly if they accept the same words.

    States are numbered as a breadth-first search from the start finds them, by edges in the order of their symbols.
    Make one with ``canonical`` or ``draw_automaton``.
    """

    edges: Edges

    def accepts(self, word: Sequence[int]) -> bool:
        """Whether all symbols of ``word`` (ids 1 to 18) can be read, one after the other, from the start."""
        state = 0
        for symbol in word:
            targets = dict(self.edges[state])
            if symbol not in targets:
                return False
            state = targets[symbol]
        return True

    def transitions(self, states: int | None = None) -> np.ndarray:
        """int8 (``states`` or as many as there are, V): the state that a token leads to, -1 where there is no edge."""
        table = np.full((states or len(self.edges), VOCAB_SIZE), -1, np.int8)
        for state, edges in enumerate(self.edges):
            for symbol, target in edges:
                table[state, symbol] = target
        return table


def canonical(edges: Sequence[dict[int, int]]) -> Automaton:
    """The minimal automaton of the same language as ``edges``: for each state, targets by symbol; state 0 is the start.

    Every state needs an edge: then none is dead, and all that minimisation has to tell apart are the missing edges.
    """
    # Moore's refinement: states stay together while their edges read the same symbols into states that are together.
    group = [0] * len(edges)
    groups = 0
    while True:
        signatures = [tuple(sorted((symbol, group[target]) for symbol, target in out.items())) for out in edges]
        numbers: dict[tuple[tuple[int, int], ...], int] = {}
        group = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        if len(numbers) == groups:
            break
        groups = len(numbers)
    # What the search does not find is unreachable, and dropped. A group is known by any of its states.
    number = {group[0]: 0}
    queue = collections.deque([0])
    found = []
    while queue:
        out = []
        for symbol, target in sorted(edges[queue.popleft()].items()):
            if group[target] not in number:
                number[group[target]] = len(number)
                queue.append(target)
            out.append((symbol, number[group[target]]))
        found.append(tuple(out))
    return Automaton(tuple(found))


def draw_automaton(config: AutomataConfig, seed: int, index: int) -> Automaton:
    """Automaton number ``index`` of ``seed``, minimised.

    Before that: n states, m symbols, and 1 to max_edges edges a state, with different symbols and different targets and
    none to itself; all uniform.
    """
    dice = _Dice(seed, index, AUTOMATON_BITS, 2 + SYMBOLS + config.max_states * (1 + 2 * config.max_edges))
    states = dice.between(config.min_states, config.max_states)
    alphabet = dice.sample(range(1, SYMBOLS + 1), dice.between(config.min_symbols, config.max_symbols))
    edges = []
    for state in range(states):
        count = dice.between(1, config.max_edges)
        others = [target for target in range(states) if target != state]
        edges.append(dict(zip(dice.sample(alphabet, count), dice.sample(others, count), strict=True)))
    return canonical(edges)


def draw_problem(automaton: Automaton, config: AutomataConfig, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Problem number ``index`` of ``seed``, from ``automaton``: its tokens and states, uint8 (T,) each.

    The state at a position is the automaton's after the token there; a separator leads to the start. No separator ends
    the problem.
    """
    dice = _Dice(seed, index, PROBLEM_BITS, 1 + config.max_words * (1 + config.max_word_length))
    tokens, states = [], []
    for _ in range(dice.between(config.min_words, config.max_words)):
        state = 0
        for _ in range(dice.between(1, config.max_word_length)):
            out = automaton.edges[state]
            symbol, state = out[dice.below(len(out))]
            tokens.append(symbol)
            states.append(state)
        tokens.append(SEPARATOR)
        states.append(0)
    return np.array(tokens[:-1], np.uint8), np.array(states[:-1], np.uint8)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem as a model sees it and as it is scored.

    At position t the model has read ``inputs`` 0 to t, and is asked for the token at t + 1.

    inputs         int32 (T,), all tokens of the problem but the last
    targets        int32 (T,), all tokens but the first; IGNORED where that is a separator, for nothing foretells it
    distributions  float32 (T, V), the automaton's next symbol: uniform over the edges of the state at t

    Scores, as the authors' code counts them. Accuracy: over the positions with a target, word starts included (at a
    separator the next symbol starts from state 0) and the problem's very first symbol not, for nothing precedes it; the
    greatest of all V outputs is right if its probability is above 0. Total variation distance: half the sum over all V
    of absolute differences, over all T positions. There the ends of words count too, with the distribution of a word
    that goes on; a model that foretells separators there is at a distance.
    """

    inputs: np.ndarray
    targets: np.ndarray
    distributions: np.ndarray


def as_problem(tokens: np.ndarray, states: np.ndarray, transitions: np.ndarray) -> Problem:
    """Tokens and states (T + 1,) as ``draw_problem`` gives them, transitions (S, V) of the automaton, to a Problem."""
    following = tokens[1:].astype(np.int32)
    allowed = transitions[states[:-1]] >= 0
    return Problem(
        inputs=tokens[:-1].astype(np.int32),
        targets=np.where(following == SEPARATOR, IGNORED, following).astype(np.int32),
        distributions=(allowed / allowed.sum(axis=-1, keepdims=True)).astype(np.float32),
    )


def random_bits(seed: int, index: int, use: int, count: int) -> np.ndarray:
    """uint64 (count,), the same on every machine: raw bits of Philox, not what numpy's distributions make of them."""
    return np.random.Philox(counter=[0, 0, 0, use], key=np.array([seed % 2**64, index], np.uint64)).random_raw(count)


class _Dice:
    """Uniform choices from one run of random bits. The bias of a remainder is below 2**-58."""

    def __init__(self, seed: int, index: int, use: int, rolls: int):
        self._bits = iter(random_bits(seed, index, use, rolls).tolist())

    def below(self, count: int) -> int:
        return next(self._bits) % count

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def sample(self, items: Sequence[int], count: int) -> list[int]:
        """``count`` different ones of ``items``, in random order: the first steps of a Fisher-Yates shuffle."""
        pool = list(items)
        for place in range(count):
            other = place + self.below(len(pool) - place)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:count]
