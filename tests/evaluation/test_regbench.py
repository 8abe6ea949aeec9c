"""Scores on RegBench: against values computed by hand, a naive count, and other batches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.data.automata import SEPARATOR, VOCAB_SIZE, AutomataConfig
from mosaics_jax.data.regbench import BatchConfig, RegBenchConfig, evaluation_batches, open_regbench
from mosaics_jax.evaluation import published
from mosaics_jax.evaluation.regbench import baselines, model_scorer, ngram, score
from mosaics_jax.models import MemoryMosaic, MosaicConfig
from mosaics_jax.shapes import IGNORED
from mosaics_jax.training.mesh import make_mesh

A, B, C = 1, 2, 3


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    config = RegBenchConfig(num_train=1, num_validation=1, num_test=7)
    automata = AutomataConfig(max_words=12, max_word_length=6)
    return open_regbench(config, automata, tmp_path_factory.mktemp("cache"), progress=False).test


def naive_scores(problems, predict):
    """Scores computed position by position without padding, as `data.automata.Problem` defines them."""
    right, distance = [], []
    for index in range(len(problems)):
        problem = problems[index]
        for t, p in enumerate(predict(problem.inputs)):
            distance.append(0.5 * np.abs(p - problem.distributions[t]).sum())
            if problem.targets[t] != IGNORED:
                right.append(problem.distributions[t][np.argmax(p)] > 0)
    return {"accuracy": np.mean(right), "tvd": np.mean(distance)}


def test_the_automaton_and_the_uniform_distribution(problems):
    result = baselines(evaluation_batches(problems, BatchConfig(batch_size=4, pad_multiple=16)))
    assert list(result) == ["automaton", "1-gram", "2-gram", "3-gram", "4-gram", "uniform"]
    assert result["automaton"] == {"accuracy": 1.0, "tvd": pytest.approx(0.0, abs=1e-7)}
    # With k of 18 symbols allowed, a uniform guess is correct with probability k/18, and half the sum of differences is
    # (k (1/k - 1/18) + (18 - k)/18) / 2 = 1 - k/18.
    edges = [(problems[i].distributions > 0).sum(axis=-1) for i in range(len(problems))]
    asked = [problems[i].targets != IGNORED for i in range(len(problems))]
    k, k_asked = np.concatenate(edges), np.concatenate([e[a] for e, a in zip(edges, asked, strict=True)])
    assert result["uniform"]["tvd"] == pytest.approx(np.mean(1 - k / 18), abs=1e-6)
    assert result["uniform"]["accuracy"] == pytest.approx(np.mean(k_asked) / 18, abs=1e-6)
    for name in ("2-gram", "3-gram", "4-gram"):
        assert result[name]["accuracy"] > result["1-gram"]["accuracy"] > result["uniform"]["accuracy"]
        assert result[name]["tvd"] < result["1-gram"]["tvd"] < result["uniform"]["tvd"]


def test_scores_by_hand():
    # Three positions and one of padding: a state with edges a and b; the end of a word; a state with edge c only.
    distributions = np.zeros((1, 4, VOCAB_SIZE), np.float32)
    distributions[0, 0, [A, B]] = 0.5
    distributions[0, 1, [A, B]] = 0.5
    distributions[0, 2, C] = 1.0
    batch = {
        "inputs": np.array([[A, SEPARATOR, A, 0]]),
        "targets": np.array([[IGNORED, B, C, IGNORED]]),
        "distributions": distributions,
    }
    guess = np.zeros((1, 4, VOCAB_SIZE), np.float32)
    guess[0, 0, SEPARATOR] = 1.0  # has no target, but distance 1
    guess[0, 1, [B, C]] = 0.5  # two entries are the largest, one of them allowed; distance 1/2
    guess[0, 2, C], guess[0, 2, A] = 0.75, 0.25  # correct; distance 1/4
    guess[0, 3, A] = 1.0
    assert score(lambda batch: guess, [batch]) == {"accuracy": 0.75, "tvd": pytest.approx(1.75 / 3)}


def test_ngrams_by_hand():
    def expected(*rows):
        table = np.zeros((len(rows), VOCAB_SIZE))
        for t, row in enumerate(rows):
            for symbol, probability in row.items():
                table[t, symbol] = probability
        return table

    # a b | a c | a a: the context never reaches back over a separator, and the beginning counts as one.
    tokens = [A, B, SEPARATOR, A, C, SEPARATOR, A, A]
    unigrams = expected(
        {A: 1},
        {A: 1 / 2, B: 1 / 2},
        {A: 1 / 2, B: 1 / 2},
        {A: 2 / 3, B: 1 / 3},
        {A: 2 / 4, B: 1 / 4, C: 1 / 4},
        {A: 2 / 4, B: 1 / 4, C: 1 / 4},
        {A: 3 / 5, B: 1 / 5, C: 1 / 5},
        {A: 4 / 6, B: 1 / 6, C: 1 / 6},
    )
    np.testing.assert_allclose(ngram(tokens, 1), unigrams)
    bigrams = unigrams.copy()  # where nothing followed the token so far
    for t, row in {2: {A: 1}, 3: {B: 1}, 5: {A: 1}, 6: {B: 1 / 2, C: 1 / 2}}.items():
        bigrams[t] = expected(row)
    bigrams[7] = expected({A: 1 / 3, B: 1 / 3, C: 1 / 3})  # a was followed by b, c and a
    np.testing.assert_allclose(ngram(tokens, 2), bigrams)
    # The context (a, a) is new: back to (a). (|, a) was followed by b and c when it came the third time.
    np.testing.assert_allclose(ngram(tokens, 3), bigrams)
    # b a | a b a: after (b, a) nothing has come yet within a word, so (a) decides, which b followed.
    np.testing.assert_allclose(ngram([B, A, SEPARATOR, A, B, A], 3)[5], expected({B: 1})[0])
    # a b c | b b c | a b: (a, b) was followed by c only, (b) by c twice and b once.
    longer = [A, B, C, SEPARATOR, B, B, C, SEPARATOR, A, B]
    np.testing.assert_allclose(ngram(longer, 2)[9], expected({B: 1 / 3, C: 2 / 3})[0])
    np.testing.assert_allclose(ngram(longer, 3)[9], expected({C: 1})[0])


@pytest.mark.parametrize("order", [1, 3])
def test_ngram_scores_are_those_of_a_naive_count(problems, order):
    batches = evaluation_batches(problems, BatchConfig(batch_size=3, pad_multiple=8))
    expected = naive_scores(problems, lambda inputs: ngram(inputs.tolist(), order))
    result = baselines(batches)[f"{order}-gram"]
    assert result["tvd"] == pytest.approx(expected["tvd"], abs=1e-6)
    # argmax takes the first of several largest entries here; the scores are the mean over them.
    assert result["accuracy"] == pytest.approx(expected["accuracy"], abs=0.1)


def test_a_models_scores_are_those_of_a_naive_count_whatever_the_batches(problems):
    config = MosaicConfig(vocab_size=VOCAB_SIZE, n_layer=1, n_head=2, n_embd=16, pmem_size=8, variant="nano")
    model = MemoryMosaic(config)
    params = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    params = jax.tree.map(lambda leaf: 4 * leaf, params)  # away from the uniform distribution
    longest = problems.lengths.max()
    apply = jax.jit(lambda tokens: jax.nn.softmax(model.apply({"params": params}, tokens)))

    def predict(inputs):
        padded = np.zeros((1, longest), np.int32)
        padded[0, : len(inputs)] = inputs
        return np.asarray(apply(padded))[0, : len(inputs)]

    expected = naive_scores(problems, predict)
    assert 0.02 < expected["accuracy"] < 0.9
    evaluate = model_scorer(model)
    with jax.set_mesh(make_mesh("data:-1")):
        for batch in (BatchConfig(batch_size=8, pad_multiple=128), BatchConfig(batch_size=3, pad_multiple=64)):
            result = evaluate(params, evaluation_batches(problems, batch))
            assert result["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-6)
            assert result["tvd"] == pytest.approx(expected["tvd"], abs=1e-5)


def test_published_values_have_one_for_each_size():
    assert list(published.REGBENCH_ACCURACY) == list(published.REGBENCH_TVD)
    for values in (*published.REGBENCH_ACCURACY.values(), *published.REGBENCH_TVD.values()):
        assert len(values) == len(published.REGBENCH_NUM_TRAIN)
