"""Scores of next-symbol predictors on RegBench (v1 section 6.3): accuracy and total variation distance (TVD).

`data.automata.Problem` defines both scores and the positions that count. A predictor maps a batch of
`data.regbench.evaluation_batches` to the distribution of the token after each position, over all V tokens. Its answer
is the largest entry over all V; if several entries are the largest, the accuracy is the mean over them.
"""

import collections
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.automata import PAD, SEPARATOR, SYMBOLS, VOCAB_SIZE
from mosaics_jax.data.batches import Batch
from mosaics_jax.models import LanguageModel
from mosaics_jax.shapes import IGNORED, Array, Params
from mosaics_jax.training.mesh import put_batch

ORDERS = (1, 2, 3, 4)  # orders n of the in-context n-gram models

Predictor = Callable[[Batch], Array | np.ndarray]
Scores = dict[str, float]  # "accuracy" and "tvd"


def tallies(probabilities_BTV: Array, batch: Batch) -> dict[str, Array]:
    """Sums over a batch, without padding.

    ``correct`` of ``targets`` answers are correct; ``distance`` is the sum of the distances at ``positions`` positions.
    ``batch`` has ``targets`` (B, T) and ``distributions`` (B, T, V).
    """
    distributions_BTV = batch["distributions"]
    allowed_BTV = distributions_BTV > 0
    largest_BTV = probabilities_BTV == jnp.max(probabilities_BTV, axis=-1, keepdims=True)
    correct_BT = jnp.sum(largest_BTV & allowed_BTV, axis=-1) / jnp.sum(largest_BTV, axis=-1)
    distance_BT = 0.5 * jnp.sum(jnp.abs(probabilities_BTV - distributions_BTV), axis=-1)
    has_target_BT = batch["targets"] != IGNORED
    valid_BT = allowed_BTV.any(axis=-1)
    return {
        "correct": jnp.sum(jnp.where(has_target_BT, correct_BT, 0.0)),
        "targets": jnp.sum(has_target_BT),
        "distance": jnp.sum(jnp.where(valid_BT, distance_BT, 0.0)),
        "positions": jnp.sum(valid_BT),
    }


def scores(batch_tallies: Iterable[dict[str, Array]]) -> Scores:
    """Accuracy and TVD over all batches: every position has the same weight, whatever its batch."""
    total: collections.Counter[str] = collections.Counter()
    for tally in batch_tallies:
        total.update({name: float(value) for name, value in tally.items()})
    return {
        "accuracy": total["correct"] / max(total["targets"], 1.0),
        "tvd": total["distance"] / max(total["positions"], 1.0),
    }


def score(predict: Predictor, batches: Iterable[Batch]) -> Scores:
    """The scores of any predictor on ``batches``, in one process."""
    tally = jax.jit(tallies)
    return scores(tally(predict(batch), batch) for batch in batches)


def model_scorer(model: LanguageModel) -> Callable[[Params, Iterable[Batch]], Scores]:
    """Returns ``evaluate(params, batches)``, which scores ``model`` without dropout. Compiles once per batch shape."""

    @jax.jit
    def tally(params: Params, batch: Batch) -> dict[str, Array]:
        logits_BTV: Any = model.apply({"params": params}, batch["inputs"])
        return tallies(jax.nn.softmax(logits_BTV, axis=-1), batch)

    def evaluate(params: Params, batches: Iterable[Batch]) -> Scores:
        mesh = jax.sharding.get_mesh()
        # A list, so that all batches are dispatched before the first result is awaited.
        return scores([tally(params, put_batch(batch, mesh)) for batch in batches])

    return evaluate


def baselines(batches: Iterable[Batch]) -> dict[str, Scores]:
    """Scores of predictors without training: the automaton itself, in-context n-grams and the uniform distribution."""
    predictors: dict[str, Predictor] = {"automaton": lambda batch: batch["distributions"]}
    predictors |= {f"{order}-gram": functools.partial(ngram_BTV, order=order) for order in ORDERS}
    predictors["uniform"] = uniform_BTV
    return {name: score(predict, batches) for name, predict in predictors.items()}


def uniform_BTV(batch: Batch) -> np.ndarray:
    """A predictor: the same probability for each of the 18 symbols."""
    probabilities_V = np.zeros(VOCAB_SIZE, np.float32)
    probabilities_V[1 : SYMBOLS + 1] = 1 / SYMBOLS
    return np.broadcast_to(probabilities_V, (*batch["inputs"].shape, VOCAB_SIZE))


def ngram_BTV(batch: Batch, order: int) -> np.ndarray:
    """A predictor: `ngram` for each row of a batch, and 0 at padding."""
    inputs_BT = batch["inputs"]
    probabilities_BTV = np.zeros((*inputs_BT.shape, VOCAB_SIZE), np.float32)
    for row, tokens_T in zip(probabilities_BTV, inputs_BT, strict=True):
        length = np.count_nonzero(tokens_T != PAD)
        row[:length] = ngram(tokens_T[:length].tolist(), order)
    return probabilities_BTV


def ngram(tokens: list[int], order: int) -> np.ndarray:
    """An n-gram model that learns within one problem: its distribution after each token, (T, V).

    The context is the last ``order - 1`` tokens, back to the separator at which the present word began; the beginning
    of the problem counts as a separator. The distribution is the relative frequency of the symbols that followed the
    same context so far. If no symbol did, the oldest token of the context is dropped, and so on down to the empty
    context. As in the models' targets, a separator never counts as a following symbol.
    """
    counts: dict[tuple[int, ...], np.ndarray] = collections.defaultdict(lambda: np.zeros(VOCAB_SIZE))
    probabilities_TV = np.zeros((len(tokens), VOCAB_SIZE))
    word: tuple[int, ...] = (SEPARATOR,)

    def contexts() -> list[tuple[int, ...]]:
        """Contexts from the longest to the empty one."""
        return [word[len(word) - length :] for length in range(min(order - 1, len(word)), -1, -1)]

    for t, token in enumerate(tokens):
        if token == SEPARATOR:
            word = (SEPARATOR,)
        else:
            for context in contexts():
                counts[context][token] += 1
            word = (*word, token)[-max(order - 1, 1) :]
        followers_V = next((counts[context] for context in contexts() if context in counts), None)
        if followers_V is not None:
            probabilities_TV[t] = followers_V / followers_V.sum()
    return probabilities_TV
