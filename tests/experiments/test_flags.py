"""Flag files and `--help`: what they say is what the configs hold."""

import dataclasses

import pytest

from mosaics_jax.models import GPT2Config, MosaicConfig
from tests.experiments.entries import ROOT, run

FLAG_FILES = sorted((ROOT / "experiments" / "flags").glob("*.flags"))


def test_help_lists_every_field_with_its_text():
    text = " ".join(run("babistories", "--help").stdout.split())
    for config in (MosaicConfig, GPT2Config):
        for field in dataclasses.fields(config):
            assert f"--{field.name}:" in text or f"--[no]{field.name}:" in text or f"--{field.name} " in text, (
                field.name
            )


@pytest.mark.parametrize("path", [p for p in FLAG_FILES if p.stem.startswith("babistories_")], ids=lambda p: p.stem)
def test_published_flag_files_make_published_models(path):
    values = dict(
        line[2:].split("=") for line in path.read_text().splitlines() if line.startswith("--") and "=" in line
    )
    fields = {field.name for field in dataclasses.fields(MosaicConfig)}
    given = {name: type(getattr(MosaicConfig(), name))(value) for name, value in values.items() if name in fields}
    assert MosaicConfig(**given, scan_layers=True) == MosaicConfig(
        n_layer=int(path.stem.split("_")[1]), dtype="bfloat16", scan_layers=True
    )
    assert int(values["steps"]) * int(values["batch_size"]) * int(values["context_length"]) == 80_000 * 512 * 512
