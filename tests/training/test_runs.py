"""Opening runs: of every experiment and format, whole and sharded; what is read for it; ``config.json``."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.models import GPT2, GPT2Config, MemoryMosaic, MosaicConfig
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.models.zoo.mamba import Mamba
from mosaics_jax.training import load_config, load_params, open_run, train
from mosaics_jax.training.checkpoint_files import _share, damage, measure
from mosaics_jax.training.checkpoints import CheckpointWriter, save_params
from mosaics_jax.training.mesh import make_mesh
from mosaics_jax.training.run_config import check_config, read_meta
from mosaics_jax.training.state import TrainState

ARCHIVE = pathlib.Path(__file__).parents[1] / "checkpoints" / "format_2.tar.gz"
READING = pathlib.Path(__file__).with_name("reading.py")
SIZE = {"vocab_size": 40, "n_layer": 1, "n_head": 2, "n_embd": 8}


class NoData:
    """An iterator over training data, as far as a checkpoint needs it."""

    def get_state(self):
        return {}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Runs that the program of format 2 made; not to be changed."""
    directory = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return directory


def params_of(model, seed=0):
    return nn.meta.unbox(model.init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"])


def config_of(name, config, data=None, experiment="babistories"):
    model = {"name": name, **dataclasses.asdict(config)}
    return {"experiment": f"{experiment}/{name}", "task": {"model": model, "data": data or {}}}


@pytest.mark.parametrize(
    ("name", "network", "step"),
    [
        ("babistories", MemoryMosaic, 8),
        ("babistories/gpt2", GPT2, 8),
        ("regbench_mosaic", MemoryMosaic, 6),
        ("mqar_mamba", Mamba, 6),
    ],
)
def test_runs_of_format_2_open(name, network, step, earlier):
    run = open_run(earlier / name)
    stored = ocp.StandardCheckpointer().restore(run.directory / "checkpoints" / str(step) / "params")
    jax.tree.map(np.testing.assert_array_equal, run.params, stored)
    assert type(run.model) is network
    logits_BTV = run.model.apply({"params": run.params}, jnp.zeros((1, 8), jnp.int32))
    assert np.isfinite(logits_BTV).all()
    assert run.config.keys() == {"experiment", "steps", "seed", "optimizer", "task"}
    assert run.config["task"].keys() == {"model", "data"}
    assert dataclasses.asdict(run.model.config) == {k: v for k, v in run.config["task"]["model"].items() if k != "name"}
    if name.startswith("babistories"):
        assert run.config["task"]["data"].keys() == {"text", "corpus"}
        assert run.tokenizer.vocab_size == 320
        best = open_run(earlier / name, "best")
        jax.tree.map(np.testing.assert_array_equal, best.params, load_params(earlier / name, "best"))
    else:
        assert run.tokenizer is None


def test_a_config_of_format_2_is_that_of_format_3(earlier):
    """As a run of this version has it that resumes: `check_config` finds no difference."""
    old = json.loads((earlier / "babistories" / "mosaic" / "checkpoints" / "8" / "meta" / "metadata").read_text())
    task = old["config"]["task"]
    model, data = {"name": "mosaic", **task["model_config"]}, {"text": task["text"], "corpus": task["corpus"]}
    new = old["config"] | {"task": {"model": model, "data": data}}
    check_config(load_config(earlier / "babistories"), new)
    model["n_layer"] = 3
    with pytest.raises(UserError, match=r"\(model.n_layer: checkpoint has 2, this run has 3\); choose another"):
        check_config(load_config(earlier / "babistories"), new)


def test_two_names_of_one_model_are_one(tmp_path):
    gpt2, transformer = (config_of(name, GPT2Config(**SIZE)) for name in ("gpt2", "transformer"))
    check_config(gpt2, transformer)
    with pytest.raises(UserError, match=r"experiment: .*'babistories/mosaic', this run has 'babistories/gpt2'"):
        check_config(config_of("mosaic", GPT2Config(**SIZE)), transformer)
    save_params(tmp_path, params_of(GPT2(GPT2Config(**SIZE))), transformer)
    assert open_run(tmp_path).config["task"]["model"]["name"] == "transformer"  # as it was typed
    assert isinstance(open_run(tmp_path).model, GPT2)


def test_config_json_is_written_before_the_first_step(tiny, tmp_path):
    configs = []

    def loss(params, batch, key):
        configs.append(json.loads((tmp_path / "config.json").read_text()))
        return tiny.cross_entropy(params, batch, key)

    train(tmp_path, dataclasses.replace(tiny.LOOP, steps=5), tiny.OPTIMIZER, tiny.make_task(loss=loss))
    config = read_meta(tmp_path / "checkpoints" / "5")["config"]
    loop = dataclasses.asdict(dataclasses.replace(tiny.LOOP, steps=5))
    assert load_config(tmp_path) == configs[0] == config | {"loop": loop}
    assert config["experiment"] == "tiny/net" and config["steps"] == 5
    before = (tmp_path / "config.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="holds a run of another config"):
        train(tmp_path, dataclasses.replace(tiny.LOOP, steps=6), tiny.OPTIMIZER, tiny.make_task())
    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_saved_parameters_open_but_do_not_resume(tiny, tmp_path):
    config = MosaicConfig(**SIZE, pmem_size=8)
    params = params_of(MemoryMosaic(config))
    save_params(tmp_path, params, config_of("mosaic", config, experiment="convert"))
    run = open_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert run.model == MemoryMosaic(config) and run.tokenizer is None
    assert damage(tmp_path / "checkpoints" / "0") == ""
    with pytest.raises(UserError, match="holds a run of another config"):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    with pytest.raises(UserError, match="best holds no finished checkpoint"):
        load_params(tmp_path, "best")


def test_moons_open(tmp_path):
    model = MoonMosaic(MoonMosaicConfig())
    params = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2, 6)))["params"])
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    save_params(tmp_path, copies, config_of("three_heads", model.config, experiment="three_moons"))
    run = open_run(tmp_path, mesh=make_mesh("data:-1"))
    assert run.model == model
    jax.tree.map(np.testing.assert_array_equal, run.params, copies)
    second = jax.tree.map(lambda leaf: leaf[1], run.params)
    assert np.all(np.isfinite(run.model.apply({"params": second}, jnp.ones((1, 3, 6)))))


def test_runs_that_cannot_be_opened(tmp_path):
    config = MosaicConfig(**SIZE, pmem_size=8)
    save_params(tmp_path, params_of(MemoryMosaic(config)), config_of("mosaic", config))
    stored = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"name": "oracle"}, "holds no model that this program knows .*model=oracle: the models are mosaic"),
        ({"n_head": 3}, "holds no model that this program knows .*not divisible"),
        ({"colour": 3}, "holds no model that this program knows .*colour"),
    ):
        model = stored["task"]["model"] | change
        (tmp_path / "config.json").write_text(json.dumps(stored | {"task": {"model": model}}))
        with pytest.raises(UserError, match=message):
            open_run(tmp_path)
    for text in ("{", "[]", '{"task": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config.json cannot be read .* remove it"):
            open_run(tmp_path)
    (tmp_path / "config.json").unlink()
    for text in ("[]", '{"format": 3}'):
        (tmp_path / "checkpoints" / "0" / "meta" / "metadata").write_text(text)
        with pytest.raises(UserError, match="does not hold the config of a run"):
            open_run(tmp_path)
    save_params(tmp_path / "other", params_of(MemoryMosaic(config)), config_of("mosaic", config))
    tmp_path = tmp_path / "other"
    model = stored["task"]["model"] | {"n_embd": 16}
    (tmp_path / "config.json").write_text(json.dumps({"task": {"model": model}}))
    with pytest.raises(UserError, match="the parameters do not fit the model"):
        _ = open_run(tmp_path, mesh=make_mesh("data:-1")).params
    with pytest.raises(ValueError, match="which='last'"):
        open_run(tmp_path, "last")


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="the system does not count what a process reads")
def test_opening_reads_the_config_alone_and_loading_the_parameters_twice(tmp_path, request):
    """Once to verify, once to restore; nothing of the optimizer, which is twice as large."""
    config = GPT2Config(**(SIZE | {"vocab_size": 50_000, "n_embd": 64}))
    params = params_of(GPT2(config))
    moments = [jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(7), leaf.shape), params) for _ in range(2)]
    for name, count in (("warm_up", 1), ("run", 2)):
        writer = CheckpointWriter(tmp_path / name, config_of("gpt2", config), keep=5)
        for step in range(count):
            key = jax.random.key_data(jax.random.key(0))
            writer.save(TrainState(jnp.int32(step), params, moments, key), NoData())
        writer.close()
    command = [sys.executable, READING, tmp_path / "warm_up", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(request.config.rootpath)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for_config, for_params = map(int, done.stdout.split())
    files = measure(tmp_path / "run" / "checkpoints" / "1")
    sizes = {
        item: sum(size for name, (size, _) in files.items() if name.split("/")[0] == item)
        for item in ("params", "optimizer")
    }
    assert sizes["optimizer"] > 1.5 * sizes["params"] > 1e7
    assert for_config < 20_000
    assert sizes["params"] < for_params < 2.1 * sizes["params"]


def test_each_process_reads_its_share():
    sizes = {"a": 100, "b": 60, "c": 50, "d": 1, "e": 0}
    assert [_share(sizes, process, 3) for process in range(3)] == [["a"], ["b"], ["c", "d", "e"]]
    assert _share(sizes, 0, 1) == list(sizes)
    assert [_share({"a": 1}, process, 2) for process in range(2)] == [["a"], []]


def test_each_process_finds_the_damage_of_its_share(finished, tmp_path):

    checkpoint = shutil.copytree(finished[0] / "checkpoints" / "40", tmp_path / "40")
    files = json.loads((checkpoint / "files.json").read_text())
    for name in files:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(b"!" + content)
        reasons = [damage(checkpoint, process=process, processes=3) for process in range(3)]
        assert sorted(bool(reason) for reason in reasons) == [False, False, True]
        assert f"{name} has " in "".join(reasons)
        (checkpoint / name).write_bytes(content)
    assert damage(checkpoint) == ""
