"""Loss and accuracy computed at the queries only equal those of all positions with the other targets masked."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaics_jax.data.mqar import MQARConfig, sequences
from mosaics_jax.evaluation.mqar import evaluation_batches, query_loss, query_scorer
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig
from mosaics_jax.shapes import IGNORED
from mosaics_jax.training.mesh import make_mesh

DATA = MQARConfig(vocab_size=40, context_length=20, num_pairs=3)
SIZE = {"vocab_size": 40, "n_layer": 1, "n_head": 1, "n_embd": 8}
MODELS = {
    "mosaic": MemoryMosaic(MosaicConfig(**SIZE, pmem_size=8, ic_dropout=0.0, hd_dropout=0.0)),
    "untied": GPT2(GPT2Config(**SIZE, context_length=20, dropout=0.0, weight_tying=False)),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture
def params(model):
    return nn.meta.unbox(model.init(jax.random.key(1), jnp.zeros((1, 20), jnp.int32))["params"])


def test_loss_and_gradient(model, params):
    batch = sequences(DATA, 0, 6)

    def whole_loss(params):
        return model.apply({"params": params}, batch["inputs"], batch["targets"], method="loss")[0]

    value, gradient = jax.value_and_grad(lambda p: query_loss(model, p, batch, jax.random.key(0), 3))(params)
    expected, expected_gradient = jax.value_and_grad(whole_loss)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_accuracy(model, params):
    batch = sequences(DATA, 0, 300)
    answers = jnp.argmax(model.apply({"params": params}, batch["inputs"]), axis=-1)
    # Some targets are replaced by the model's answers, so that some answers are right.
    rows = np.arange(300)[:, None] < 120
    batch["targets"] = np.where(rows & (batch["targets"] != IGNORED), answers, batch["targets"])
    is_query = batch["targets"] != IGNORED
    expected = (np.asarray(answers) == batch["targets"])[is_query].mean()
    assert 0.4 <= expected < 0.6
    batches = evaluation_batches(batch, 128)
    assert [len(part["inputs"]) for part in batches] == [128] * 3
    with jax.set_mesh(make_mesh("data:-1")):
        assert query_scorer(model, 3)(params, batches)["accuracy"] == pytest.approx(expected)
