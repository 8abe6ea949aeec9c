"""``results.json`` of one run of RegBench or MQAR: scores, the configs that ran, the machine."""

import json
from pathlib import Path
from typing import Any

import jax

from experiments.entry.results import machine
from experiments.entry.sequence_flags import EXPERIMENTS, Setup
from mosaics_jax.errors import UserError
from mosaics_jax.models.registry import ALIASES
from mosaics_jax.runtime import staging

FILE_NAME = "results.json"
VERSION = 1  # of the computation: results of different versions are not comparable
CONFIGS = ("model_config", "data_config", "optimizer_config", "loop_config")
SAME_RUN = ("steps", "seed")  # fields of the loop that change scores; the others say what is logged and kept, and where


def write(workdir: Path, experiment: str, setup: Setup, results: dict[str, Any]) -> dict[str, Any]:
    """Writes ``results.json`` with the fields that every run has, and returns all of it. Only process 0 writes."""
    results = {"experiment": experiment, "version": VERSION, **results, "machine": machine(), **setup.configs()}
    if jax.process_index() == 0:
        staging.write_file(workdir / FILE_NAME, (json.dumps(results, indent=1) + "\n").encode())
    return results


def read(workdir: Path, experiment: str) -> dict[str, Any] | None:
    """The results in a work directory; None if there are none yet.

    Raises UserError if they are of another experiment or version. Results of earlier programs hold ``settings``, the
    flags that were given, in place of the configs; `configs_of` derives the configs.
    """
    path = workdir / FILE_NAME
    try:
        results = json.loads(path.read_text())
        kind = results["experiment"], results["version"]
        _ = results["model"], "settings" in results or [results[name] for name in CONFIGS]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the results of a run: move it away ({error})") from None
    if kind != (experiment, VERSION):
        raise UserError(
            f"{path} is of {kind[0]}, version {kind[1]}, and this is {experiment}, version {VERSION}: "
            "move it away, or choose another work directory"
        )
    return results


def read_same(workdir: Path, experiment: str, model_name: str, configs: dict[str, Any]) -> dict[str, Any] | None:
    """As `read`; raises UserError too if another model or other configs ran than these (`Setup.configs`).

    Numbers compare by value, models by their canonical names. Intervals of the loop and the mesh may differ: they
    change no score.
    """
    results = read(workdir, experiment)
    if results is None:
        return None
    old, new = identity(results["model"], configs_of(results)), identity(model_name, configs)
    different = {
        name.rpartition(".")[2]: f"{old.get(name, 'not there')}, now {new.get(name, 'not there')}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }
    if different:
        shown = "; ".join(f"{name} was {values}" for name, values in different.items())
        raise UserError(
            f"{workdir / FILE_NAME} is of other settings ({shown}): move it away, or choose another work directory"
        )
    return results


def configs_of(results: dict[str, Any]) -> dict[str, Any]:
    """The configs that ran, for results of any program."""
    if "settings" in results:
        return EXPERIMENTS[results["experiment"]].setup(results["settings"]).configs()
    return {name: results[name] for name in CONFIGS}


def identity(model_name: str, configs: dict[str, Any]) -> dict[str, Any]:
    """All that decides the scores of a run, in one flat dict: ``model``, ``model_config.n_embd``, ..."""
    configs = json.loads(json.dumps(configs))
    loop = {name: configs["loop_config"][name] for name in SAME_RUN}
    return {"model": ALIASES.get(model_name, model_name), **flat(configs | {"loop_config": loop})}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with names like ``loop_config.seed``."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields
