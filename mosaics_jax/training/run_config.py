"""The config of a run as a dict: how it is stored, compared, and brought up to date from earlier formats.

    {"experiment": "EXPERIMENT/MODEL", "steps": ..., "seed": ..., "optimizer": {...},
     "task": {"model": {"name": MODEL, fields of its config}, "data": {...}}}

The same dict stands in the meta item of each checkpoint, and in ``config.json`` of the run's directory, there with the
field ``loop``: mesh and intervals, which may change when a run resumes. A run's directory is WORKDIR/MODEL where an
experiment trains several models, and WORKDIR itself for RegBench and MQAR.
"""

import json
import pathlib
from typing import Any

from mosaics_jax.errors import UserError
from mosaics_jax.models.registry import canonical_name
from mosaics_jax.runtime import staging

CONFIG_FILE = "config.json"
FORMAT = 3  # of checkpoints
READABLE = (1, 2, 3)

Config = dict[str, Any]


def write_config(run: pathlib.Path, config: Config) -> None:
    """Writes ``config.json``. Raises UserError if it cannot."""
    try:
        staging.write_file(run / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write in {run}: {error.strerror}") from error


def read_config(run: pathlib.Path) -> Config | None:
    """The config in ``config.json``; None if the file is missing, as in runs of format 2. Raises UserError."""
    try:
        config = json.loads((run / CONFIG_FILE).read_text())
        if not isinstance(config, dict) or not isinstance(config.get("task", {}), dict):
            raise ValueError("it is not the config of a run")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run / CONFIG_FILE} cannot be read ({error}); remove it: the checkpoints hold a copy"
        ) from None
    return config


def meta_of(step: int, config: Config) -> dict[str, Any]:
    """The meta item of a checkpoint."""
    return {"format": FORMAT, "step": step, "config": config}


def read_meta(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The meta item of a checkpoint, its config brought up to date. Raises UserError for a format of the future."""
    meta = json.loads((checkpoint / "meta" / "metadata").read_text())
    if not isinstance(meta, dict) or not isinstance(meta.get("config"), dict):
        raise UserError(f"{checkpoint} does not hold the config of a run: it is not a checkpoint of this program")
    if meta.get("format") not in READABLE:
        raise UserError(
            f"{checkpoint} has format {meta.get('format')}, this program reads up to {FORMAT}: "
            "use the program that wrote it"
        )
    if meta["format"] < FORMAT:
        meta["config"] = _upgraded(meta["config"])
    return meta


def _upgraded(config: Config) -> Config:
    """The config of a checkpoint of format 1 or 2 as format 3 has it."""
    config, task = dict(config), config.get("task", {})
    if "optimizer" in config:  # format 1 had no skip_spikes
        config["optimizer"] = {"skip_spikes": 0.0} | config["optimizer"]
    if "model_config" in task:  # language models
        config["task"] = {
            "model": {"name": task["model"], **task["model_config"]},
            "data": {name: task[name] for name in ("text", "corpus") if name in task},
        }
    experiment, _, name = config.get("experiment", "").partition("/")
    if experiment == "three_moons":  # their models had no name
        config["task"] = task | {"model": {"name": name} | task["model"]}
    return config


def check_config(stored: Config, current: Config) -> None:
    """Raises UserError, with the fields that differ, unless a checkpoint's config and that of this run are equal.

    Two names of one model (`models.registry`) are equal.
    """
    old, new = _flat(_canonical(stored)), _flat(_canonical(json.loads(json.dumps(current))))

    def show(values: dict[str, Any], name: str) -> str:
        return repr(values[name]) if name in values else "no such field"

    different = [
        f"{name.removeprefix('task.').removeprefix('optimizer.')}: "
        f"checkpoint has {show(old, name)}, this run has {show(new, name)}"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]
    if different:
        raise UserError(
            f"the work directory holds a run of another config ({'; '.join(different)}); choose another work directory"
        )


def _canonical(config: Config) -> Config:
    """The config with canonical names of its model, and without what may change when a run resumes."""

    def canonical(name: Any) -> Any:
        try:
            return canonical_name(name)
        except (ValueError, TypeError):  # a model of moons, or none of this library
            return name

    config, task = {name: value for name, value in config.items() if name != "loop"}, config.get("task", {})
    if "experiment" in config:
        experiment, slash, name = config["experiment"].partition("/")
        config["experiment"] = f"{experiment}{slash}{canonical(name)}"
    if isinstance(task.get("model"), dict) and "name" in task["model"]:
        config["task"] = task | {"model": task["model"] | {"name": canonical(task["model"]["name"])}}
    return config


def _flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
