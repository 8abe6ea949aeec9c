"""Flag files and `--help` agree with the config dataclasses."""

import dataclasses

import pytest
from absl import flags

from experiments.entry.sequence_flags import MQAR, REGBENCH
from mosaics_jax.models.gpt2 import GPT2Config
from mosaics_jax.models.mosaic import MosaicConfig
from mosaics_jax.models.zoo.mamba import MambaConfig
from tests.experiments.entries import ROOT, run

FLAG_FILES = sorted((ROOT / "experiments" / "flags").glob("*.flags"))


def named(prefix):
    files = [path for path in FLAG_FILES if path.stem.startswith(prefix)]
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # flagfiles that include others name them from there


def settings_in(path):
    """The settings of a flagfile and of the flagfiles that it includes; of two for one flag the later counts."""
    lines = flags.FLAGS.read_flags_from_files([f"--flagfile={path}"])
    return {name: value for name, _, value in (line.lstrip("-").partition("=") for line in lines)}


def test_help_lists_every_field_with_its_text():
    text = " ".join(run("babistories", "--help").stdout.split())
    for config in (MosaicConfig, GPT2Config, MambaConfig):
        for field in dataclasses.fields(config):
            assert f"--{field.name}:" in text or f"--[no]{field.name}:" in text or f"--{field.name} " in text, (
                field.name
            )


@named("babistories_")
def test_published_flag_files_make_published_models(path):
    values = settings_in(path)
    assert values["scan_layers"] == ""
    fields = {field.name for field in dataclasses.fields(MosaicConfig)} - {"scan_layers"}
    given = {name: type(getattr(MosaicConfig(), name))(value) for name, value in values.items() if name in fields}
    assert MosaicConfig(**given, scan_layers=True) == MosaicConfig(
        n_layer=int(path.stem.split("_")[1]), dtype="bfloat16", scan_layers=True
    )
    assert int(values["steps"]) * int(values["batch_size"]) * int(values["context_length"]) == 80_000 * 512 * 512


@named("regbench_")
def test_regbench_flag_files_make_runs_of_one_size(path):
    setup = REGBENCH.setup(REGBENCH.parse(settings_in(path)))
    if path.stem != "regbench_smoke":
        assert setup.data.num_train == int(path.stem.split("_")[1])
        assert f"{setup.loop.steps} steps" in path.read_text().splitlines()[0]
        assert (setup.model_config.n_embd, setup.model_config.ic_dropout, setup.optimizer.learning_rate) == (
            *(128, 0.05, 5e-4),
        )


@named("mqar_")
def test_mqar_flag_files_make_runs(path):
    setup = MQAR.setup(MQAR.parse(settings_in(path) | {"model": "transformer"}))
    length = setup.data.sequences.context_length
    assert setup.model_config.context_length == length
    if path.stem.split("_")[1].isdecimal():
        assert length == int(path.stem.split("_")[1])
        assert (setup.model_config.dropout, setup.data.num_train, setup.data.batch_size) == (
            *(0.1, 100_000, {64: 512, 128: 512, 256: 256, 512: 128}[length]),
        )


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.stem)
def test_a_flag_file_says_in_a_comment_what_it_is_for(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and settings_in(path)
    given = [line.partition("=")[0] for line in lines if line.startswith("--")]
    assert len(set(given)) == len(given)
