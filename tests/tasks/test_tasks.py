"""Tasks: one signature, one layout of the config, and the next-token loss against its definition."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh

from mosaics_jax.data.automata import AutomataConfig
from mosaics_jax.data.corpus import CorpusConfig, open_corpus
from mosaics_jax.data.moons import MoonsConfig
from mosaics_jax.data.mqar import MQARConfig
from mosaics_jax.data.regbench import BatchConfig, RegBenchConfig, open_regbench
from mosaics_jax.data.stories import write_corpus
from mosaics_jax.errors import UserError
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.models.registry import build_model
from mosaics_jax.sharding import MESH_AXES
from mosaics_jax.tasks import language, moons, mqar, regbench
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.training.mesh import make_mesh

SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16}
MODULES = {"language": language, "regbench": regbench, "mqar": mqar, "moons": moons}


def sequence_model(vocab_size, name="gpt2", **fields):
    return build_model(name, {**SIZES, "vocab_size": vocab_size, **fields})


def language_task(directory):
    for name, seed, count in (("train", 1, 60), ("valid", 2, 6)):
        write_corpus(directory / f"{name}.txt", seed, count)
    files = CorpusConfig(train_files=str(directory / "train.txt"), eval_files=str(directory / "valid.txt"))
    corpus = open_corpus(dataclasses.replace(files, vocab_size=320), directory / "cache")
    config = language.TextConfig(context_length=32, batch_size=4, eval_tokens=200)
    return language.make_task("gpt2", sequence_model(320, context_length=32), corpus, config, seed=0)


def regbench_task(directory):
    config = regbench.RegBenchTaskConfig(
        RegBenchConfig(num_train=6, num_validation=4, num_test=4),
        AutomataConfig(min_words=2, max_words=4, max_word_length=6),
        BatchConfig(batch_size=4),
    )
    data = open_regbench(config.problems, config.automata, directory, progress=False)
    model = sequence_model(config.vocab_size, "mosaic", pmem_size=8)
    return regbench.make_task("mosaic", model, data, config, seed=0, row_multiple=jax.device_count())


def mqar_task(directory):
    config = mqar.MQARTaskConfig(
        MQARConfig(vocab_size=64, context_length=16, num_pairs=2), mqar.SplitSizes(16, 8, 8, 0, 8)
    )
    model = sequence_model(64, "retnet")
    return mqar.make_task("retnet", model, mqar.make_data(config), config, seed=0)


def moons_task(directory):
    data = MoonsConfig(batch_size=4, context_length=40)
    return moons.make_task("three_heads", MoonMosaic(MoonMosaicConfig()), data, moons.CopiesConfig(seeds=2), seed=0)


MAKERS = {
    "babistories/gpt2": language_task,
    "regbench/mosaic": regbench_task,
    "mqar/retnet": mqar_task,
    "three_moons/three_heads": moons_task,
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_one_signature(module):
    parameters = inspect.signature(module.make_task).parameters
    assert [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        *("model_name", "model", "data", "config")
    ]
    keywords = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert [name for name, p in keywords.items() if p.default is p.empty] == ["seed"]


@pytest.mark.parametrize("name", MAKERS)
def test_a_task_has_what_training_needs(name, tmp_path):
    task = MAKERS[name](tmp_path)
    assert task.name == name
    assert task.config["model"]["name"] == name.split("/")[1]
    assert json.loads(json.dumps(task.config))["data"]
    with jax.set_mesh(make_mesh("data:-1")):
        params = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
        loss, metrics = task.loss(params, next(iter(task.train_data)), jax.random.key(1))
        assert loss.shape == () and np.isfinite(loss)
        assert set(metrics) == ({"loss", "loss_0", "loss_1"} if "moons" in name else set())
        for evaluate in filter(None, (task.evaluate, getattr(task, "test", None))):
            assert all(np.isfinite(value) for value in evaluate(params).values())


def test_next_token_loss_and_parameters():
    model = sequence_model(23, context_length=12, dropout=0.0)
    tokens = np.random.default_rng(0).integers(0, 23, (3, 13)).astype(np.int32)
    targets = np.where(np.arange(12) % 5 == 1, -1, tokens[:, 1:]).astype(np.int32)
    key = jax.random.key(0)
    params = nn.meta.unbox(init_function(model, 7)(key))
    expected = nn.meta.unbox(model.init(key, jnp.zeros((1, 12), jnp.int32))["params"])
    jax.tree.map(np.testing.assert_array_equal, params, expected)  # whatever the length of the blank sequence

    logits = np.asarray(model.apply({"params": params}, tokens[:, :-1]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    batch = {"inputs": tokens[:, :-1], "targets": targets}
    for z_loss in (0.0, 0.1):
        loss, metrics = next_token_loss(model, z_loss)(params, batch, key)
        assert metrics == {}
        assert loss == pytest.approx((nats + z_loss * log_z**2)[targets >= 0].mean(), rel=1e-5)


def test_a_mesh_that_does_not_divide_the_time(monkeypatch):
    model = sequence_model(23, context_length=10)
    params = nn.meta.unbox(init_function(model, 10)(jax.random.key(0)))
    batch = {name: np.ones((2, 10), np.int32) for name in ("inputs", "targets")}
    mesh = AbstractMesh((1, 1, 1, 3), MESH_AXES)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    with pytest.raises(UserError, match="context_length=10 does not divide by mesh sequence:3: choose a multiple of 3"):
        next_token_loss(model)(params, batch, jax.random.key(0))


def test_training_has_dropout_by_its_key():
    model = sequence_model(23, context_length=12, dropout=0.5)
    batch = {name: np.ones((2, 12), np.int32) for name in ("inputs", "targets")}
    params = nn.meta.unbox(init_function(model, 12)(jax.random.key(0)))
    one, other = (next_token_loss(model)(params, batch, jax.random.key(seed))[0] for seed in (0, 1))
    assert one != other


def test_configs_refuse_bad_values():
    for make in (
        lambda: language.TextConfig(z_loss=float("nan")),
        lambda: mqar.SplitSizes(num_test=0),
        lambda: moons.CopiesConfig(seeds=0),
    ):
        with pytest.raises(ValueError, match="must be at least"):
            make()


def test_positions_that_a_model_does_not_learn(tmp_path):
    config = regbench.RegBenchTaskConfig(
        RegBenchConfig(num_train=2, num_validation=2, num_test=2),
        AutomataConfig(min_words=2, max_words=4),
        BatchConfig(),
    )
    data = open_regbench(config.problems, config.automata, tmp_path, progress=False)
    model = sequence_model(config.vocab_size, context_length=8)
    with pytest.raises(UserError, match=r"transformer learns so many positions.*set --context_length="):
        regbench.make_task("transformer", model, data, config, seed=0)
