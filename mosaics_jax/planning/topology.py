"""Chips to compile for that are not attached to this machine: slices of TPUs, hosts of GPUs."""

import dataclasses
import importlib.resources
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from mosaics_jax.errors import UserError

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """The specification of a chip (docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e; data sheet of the H100 SXM5).

    flops: dense bfloat16 FLOPs a second. hbm: bytes of main memory, of which the compiler reserves some. hbm_rate:
    bytes a second. link_rate: bytes a second over all links to other chips, in one direction (half of the
    "bidirectional" figure). shape: regular expression for a topology of such chips; for GPUs HOSTSxGPUS or GPUS.
    """

    flops: float
    hbm: float
    hbm_rate: float
    link_rate: float
    shape: str


CHIPS = {
    "v5e": Chip(flops=197e12, hbm=16 * GIB, hbm_rate=819e9, link_rate=200e9, shape=r"\d+x\d+"),
    "v5p": Chip(flops=459e12, hbm=95 * GIB, hbm_rate=2765e9, link_rate=600e9, shape=r"\d+x\d+x\d+"),
    "v6e": Chip(flops=918e12, hbm=32 * GIB, hbm_rate=1638e9, link_rate=400e9, shape=r"\d+x\d+"),
    "h100": Chip(flops=989e12, hbm=84978434048, hbm_rate=3352e9, link_rate=450e9, shape=r"([1-9]\d*x)?[1-9]\d*"),
}

H100_FILE = "h100.textproto"


def slice_devices(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology such as ``v5e:4x4`` or ``h100:8``.

    The devices can be compiled for, but run nothing. Call this function before any other use of JAX in the process: it
    makes CPU the default platform. Raises UserError if there is no such topology, or if the compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(CHIPS[name].shape, shape):
        raise UserError(
            f"--topology={topology}: write CHIP:SHAPE, with a chip of {', '.join(CHIPS)} and its chips along each "
            "side, as in v5e:4x4, v6e:8x8 or v5p:4x4x4; of GPUs, hosts and those of each, as in h100:8 or h100:2x8"
        )
    jax.config.update("jax_platforms", "cpu")
    return CHIPS[name], _gpus(shape) if name == "h100" else _tpus(topology)


def _tpus(topology: str) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("a plan needs libtpu, the compiler for TPU, which runs on any machine: pip install 'jax[tpu]'")
    # Without these variables libtpu queries the metadata server of a TPU VM for minutes, logs the failures, and locks
    # chips that it does not use.
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    for key, value in {**environment, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2]
        raise UserError(f"--topology={topology}: there is no such slice ({reason})") from None


def _gpus(shape: str) -> list[Any]:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UserError(
            "a plan for GPUs needs JAX's plugin for CUDA, which compiles on any machine: "
            "pip install jax-cuda13-plugin jax-cuda13-pjrt, both of the version of jax"
        )
    hosts, _, each = shape.rpartition("x")
    target = importlib.resources.files(__package__).joinpath(H100_FILE).read_text()
    # The topology name is not interpreted.
    description = topologies.get_topology_desc(
        platform="cuda", topology_name="1x1x1", topology=f"1x{hosts or 1}x{each}", target_config=target
    )
    return list(description.devices)
