"""What results files record besides scores: the configs that ran, and the machine."""

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import jax

from mosaics_jax.training.loop import LoopConfig
from mosaics_jax.training.optimizer import OptimizerConfig


def configs_that_ran(
    model_config: Any, data_config: dict[str, Any], optimizer: OptimizerConfig, loop: LoopConfig
) -> dict[str, Any]:
    """The part of a results file that says what ran: all fields of all configs, whatever flags were given."""
    return {
        "model_config": dataclasses.asdict(model_config),
        "data_config": data_config,
        "optimizer_config": dataclasses.asdict(optimizer),
        "loop_config": dataclasses.asdict(loop),
    }


def machine() -> dict[str, Any]:
    """What speed depends on besides the code: the device, how many there are, the version of JAX, cores of a CPU."""
    device = jax.devices()[0]
    described = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    if device.platform == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        described |= {"device": names[0] if names else platform.processor(), "cores": cores}
    return described
