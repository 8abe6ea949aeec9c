"""Scores of next-symbol predictors on RegBench (v1 section 6.3): accuracy and total variation distance.

What is asked where, and what counts, is said at `data.automata.Problem`. A predictor takes a batch of
`data.regbench.evaluation_batches` and gives the distribution of the token after each position, over all V tokens:
accuracy is that of its greatest entry over all V, and where several are the greatest, their mean.
"""

import collections
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.automata import PAD, SEPARATOR, SYMBOLS, VOCAB_SIZE
from mosaics_jax.data.windows import Batch
from mosaics_jax.models import LanguageModel
from mosaics_jax.shapes import IGNORED, Array, Params
from mosaics_jax.training.mesh import put_batch

ORDERS = (1, 2, 3, 4)  # of the in-context n-gram models

Predictor = Callable[[Batch], Array | np.ndarray]
Scores = dict[str, float]  # accuracy and tvd


def tallies(probabilities_BTV: Array, batch: Batch) -> dict[str, Array]:
    """Sums over a batch: ``right`` of the ``asked`` positions, ``distance`` over ``positions``; padding counts nothing.

    ``batch`` has ``targets`` (B, T) and ``distributions`` (B, T, V).
    """
    distributions_BTV = batch["distributions"]
    allowed_BTV = distributions_BTV > 0
    greatest_BTV = probabilities_BTV == jnp.max(probabilities_BTV, axis=-1, keepdims=True)
    right_BT = jnp.sum(greatest_BTV & allowed_BTV, axis=-1) / jnp.sum(greatest_BTV, axis=-1)
    distance_BT = 0.5 * jnp.sum(jnp.abs(probabilities_BTV - distributions_BTV), axis=-1)
    asked_BT = batch["targets"] != IGNORED
    valid_BT = allowed_BTV.any(axis=-1)
    return {
        "right": jnp.sum(jnp.where(asked_BT, right_BT, 0.0)),
        "asked": jnp.sum(asked_BT),
        "distance": jnp.sum(jnp.where(valid_BT, distance_BT, 0.0)),
        "positions": jnp.sum(valid_BT),
    }


def scores(batch_tallies: Iterable[dict[str, Array]]) -> Scores:
    """Accuracy and TVD over all batches: each position weighs the same, whatever batch it is in."""
    total: collections.Counter[str] = collections.Counter()
    for tally in batch_tallies:
        total.update({name: float(value) for name, value in tally.items()})
    return {
        "accuracy": total["right"] / max(total["asked"], 1.0),
        "tvd": total["distance"] / max(total["positions"], 1.0),
    }


def score(predict: Predictor, batches: Iterable[Batch]) -> Scores:
    """The scores of any predictor; ``batches`` are those of one process."""
    count = jax.jit(tallies)
    return scores(count(predict(batch), batch) for batch in batches)


def model_scorer(model: LanguageModel) -> Callable[[Params, Iterable[Batch]], Scores]:
    """A function of parameters and batches that scores ``model``, without dropout. Compiles each shape once."""

    @jax.jit
    def count(params: Params, batch: Batch) -> dict[str, Array]:
        logits_BTV: Any = model.apply({"params": params}, batch["inputs"])
        return tallies(jax.nn.softmax(logits_BTV, axis=-1), batch)

    def evaluate(params: Params, batches: Iterable[Batch]) -> Scores:
        mesh = jax.sharding.get_mesh()
        # Dispatched before any is waited for.
        return scores([count(params, put_batch(batch, mesh)) for batch in batches])

    return evaluate


def baselines(batches: Iterable[Batch]) -> dict[str, Scores]:
    """Scores of what learns nothing from other problems: the automaton itself, n-grams, the uniform distribution."""
    predictors: dict[str, Predictor] = {"automaton": lambda batch: batch["distributions"]}
    predictors |= {f"{order}-gram": functools.partial(ngram_BTV, order=order) for order in ORDERS}
    predictors["uniform"] = uniform_BTV
    return {name: score(predict, batches) for name, predict in predictors.items()}


def uniform_BTV(batch: Batch) -> np.ndarray:
    """The same probability for each of the 18 symbols."""
    probabilities_V = np.zeros(VOCAB_SIZE, np.float32)
    probabilities_V[1 : SYMBOLS + 1] = 1 / SYMBOLS
    return np.broadcast_to(probabilities_V, (*batch["inputs"].shape, VOCAB_SIZE))


def ngram_BTV(batch: Batch, order: int) -> np.ndarray:
    """`ngram` for each row of a batch, with 0 at padding."""
    inputs_BT = batch["inputs"]
    probabilities_BTV = np.zeros((*inputs_BT.shape, VOCAB_SIZE), np.float32)
    for row, tokens_T in zip(probabilities_BTV, inputs_BT, strict=True):
        length = np.count_nonzero(tokens_T != PAD)
        row[:length] = ngram(tokens_T[:length].tolist(), order)
    return probabilities_BTV


def ngram(tokens: list[int], order: int) -> np.ndarray:
    """An n-gram model that learns within one problem: the distribution after each token, (T, V).

    The context is the last ``order - 1`` tokens, but none before the separator (or the beginning of the problem, which
    is taken for one) at which the present word began. The distribution is that of the symbols which followed the same
    context so far, counts over their sum; if none did, that of the context without its oldest token, and so on, down to
    no context. As for the models, what follows is never a separator.
    """
    counts: dict[tuple[int, ...], np.ndarray] = collections.defaultdict(lambda: np.zeros(VOCAB_SIZE))
    probabilities_TV = np.zeros((len(tokens), VOCAB_SIZE))
    word: tuple[int, ...] = (SEPARATOR,)

    def contexts() -> list[tuple[int, ...]]:
        """From the longest to none."""
        return [word[len(word) - length :] for length in range(min(order - 1, len(word)), -1, -1)]

    for t, token in enumerate(tokens):
        if token == SEPARATOR:
            word = (SEPARATOR,)
        else:
            for context in contexts():
                counts[context][token] += 1
            word = (*word, token)[-max(order - 1, 1) :]
        known = next((counts[context] for context in contexts() if context in counts), None)
        if known is not None:
            probabilities_TV[t] = known / known.sum()
    return probabilities_TV
