"""Chips that are not here, to compile for: slices of TPUs, hosts of GPUs."""

import dataclasses
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
    """A chip, as its maker specifies it: docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e; H100 SXM5's data sheet.

    flops: a second, bfloat16, dense. hbm: bytes; the compiler itself keeps some of them. hbm_rate: bytes a second.
    link_rate: bytes a second over all links to other chips in one direction, half of the "bidirectional" figure.
    shape: how a topology of them is written, a regular expression; GPUs: their hosts x those of one, or those alone.
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

# What XLA asks of a GPU, in the words of its `GpuTargetConfigProto`.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 12 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_memory_size: 84978434048
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
}
"""


def slice_devices(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of chips named as ``v5e:4x4`` or ``h100:8``. Raises UserError if there is no such slice.

    The devices can be compiled for and nothing else. Comes before any other use of JAX in the process.
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
    # libtpu looks for the machine it is on, at length and aloud, unless told; and it locks chips that it does not use.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    for key, value in {**quiet, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
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
    # The name is only a name.
    found = topologies.get_topology_desc(
        platform="cuda", topology_name="1x1x1", topology=f"1x{hosts or 1}x{each}", target_config=H100
    )
    return list(found.devices)
