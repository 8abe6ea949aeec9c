"""The description of a GPU is a file of the package: it must be found, and be installed with it."""

import configparser
import importlib.resources
import pathlib

from mosaics_jax.planning.topology import CHIPS, H100_FILE

ROOT = pathlib.Path(__file__).parents[2]


def test_the_gpu_is_described_in_a_file_of_the_package():
    text = importlib.resources.files("mosaics_jax.planning").joinpath(H100_FILE).read_text()
    assert 'device_description_str: "NVIDIA H100 80GB HBM3"' in text
    assert f"device_memory_size: {CHIPS['h100'].hbm}" in text


def test_the_file_is_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pattern = setup["options.package_data"]["mosaics_jax.planning"]
    assert H100_FILE in [path.name for path in (ROOT / "mosaics_jax" / "planning").glob(pattern)]
