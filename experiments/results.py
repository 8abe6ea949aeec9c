"""What the experiments on sequence models leave behind: ``results.json`` of a run, tables of many."""

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax
from absl import flags

from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.processes import Processes

FILE_NAME = "results.json"
VERSION = 1  # of what a run computes: results of different versions are not to be compared
# Flags that say where and by how many a run is made, not what it is.
PLACES = ("workdir", "cache_dir", "workers", "flagfile", *(field.name for field in dataclasses.fields(Processes)))


def given_settings() -> dict[str, Any]:
    """The flags that were given, with their values; those of PLACES aside."""
    given = [name for name in flags.FLAGS if flags.FLAGS[name].present and name not in PLACES]
    return {name: flags.FLAGS[name].value for name in sorted(given)}


def machine() -> dict[str, Any]:
    """What speed depends on besides the code."""
    device = jax.devices()[0]
    described = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    if device.platform == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        described |= {"device": names[0] if names else platform.processor(), "cores": cores}
    return described


def write(workdir: Path, experiment: str, results: dict[str, Any]) -> dict[str, Any]:
    """Writes ``results.json`` with what every run says, and gives all of it; the first process alone writes."""
    results = {"experiment": experiment, "version": VERSION, **results}
    results |= {"machine": machine(), "settings": given_settings()}
    if jax.process_index() == 0:
        staging.write_file(workdir / FILE_NAME, (json.dumps(results, indent=1) + "\n").encode())
    return results


def read(workdir: Path, experiment: str, settings: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The results in a work directory; None if there are none yet.

    Raises UserError if they are of another experiment or version, or of other ``settings`` than those given.
    """
    path = workdir / FILE_NAME
    try:
        results = json.loads(path.read_text())
        kind = results["experiment"], results["version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the results of a run: move it away ({error})") from None
    if kind != (experiment, VERSION):
        raise UserError(
            f"{path} is of {kind[0]}, version {kind[1]}, and this is {experiment}, version {VERSION}: "
            "move it away, or choose another work directory"
        )
    if settings is not None:
        old, new = results["settings"], json.loads(json.dumps(settings))
        different = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        if different:
            shown = ", ".join(f"--{name} was {old.get(name, 'not given')}" for name in different)
            raise UserError(f"{path} is of other settings ({shown}): move it away, or choose another work directory")
    return results
