"""The runs of a sweep: a job for each point of a grid of flags."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.entry.model_flags import config_fields
from experiments.entry.sequence_flags import EXPERIMENTS
from experiments.sweeps import results
from mosaics_jax.errors import UserError
from mosaics_jax.runtime.processes import Processes

Settings = dict[str, str]  # flag -> value, as they are typed
# Flags that say where and by how many processes a run is made. The sweep sets them itself.
SET_BY_SWEEP = {"workdir", "cache_dir", "workers", "flagfile"} | config_fields(Processes)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    settings: the flags that its process is started with, none of which belongs to other models. configs: what those
    settings and the defaults come to (`sequence_flags.Setup.configs`).
    """

    experiment: str
    name: str
    workdir: Path
    settings: Settings
    model_name: str
    configs: dict[str, Any]

    def finished(self) -> dict[str, Any] | None:
        """The results of the run, or None if it has not finished. Raises UserError if other results lie there."""
        return results.read_same(self.workdir, self.experiment, self.model_name, self.configs)

    @property
    def cost(self) -> float:
        """A number in proportion to the time of the run, estimated from the settings that decide its length."""
        return _number(self.settings.get("num_train", "")) * _number(self.settings.get("epochs", ""))


def _number(text: str) -> float:
    return float(text) if text.isdecimal() else 1.0


def parse_grid(text: str) -> list[Settings]:
    """All combinations of ``"model=mosaic,mamba; num_train=100,500"``; ``a:b=1:2,3:4`` ties two flags together.

    Raises UserError if the text has another form.
    """
    axes: list[list[Settings]] = []
    for axis in filter(None, map(str.strip, text.split(";"))):
        left, equals, right = axis.partition("=")
        names = [name.strip() for name in left.split(":")]
        values = [[part.strip() for part in value.split(":")] for value in right.split(",")]
        complete = all(len(value) == len(names) and all(value) for value in values)
        if not equals or not all(re.fullmatch(r"\w+", name) for name in names) or not complete:
            raise UserError(
                f"--grid: {axis!r} is not FLAG=VALUE,VALUE,... (or FLAG:FLAG=VALUE:VALUE,...); ; separates flags"
            )
        axes.append([dict(zip(names, value, strict=True)) for value in values])
    combinations = []
    for parts in itertools.product(*axes):
        combinations.append({name: value for part in parts for name, value in part.items()})
        if len(combinations[-1]) < sum(map(len, parts)):
            raise UserError(f"--grid={text!r} names a flag twice")
    return combinations


def read_base(flagfile: str, flag: str = "base") -> Settings:
    """The settings in a flagfile and the flagfiles it includes. Raises UserError, which names ``flag``."""
    if not flagfile:
        return {}
    try:
        lines = flags.FLAGS.read_flags_from_files([f"--flagfile={flagfile}"])
    except flags.Error as error:
        raise UserError(f"--{flag}={flagfile} cannot be read ({error})") from None
    settings = {}
    for line in lines:
        name, equals, value = line.lstrip("-").partition("=")
        if not line.startswith("-") or not equals:
            raise UserError(f"--{flag}={flagfile}: write --NAME=VALUE instead of {line!r}")
        settings[name] = value
    return settings


def make_jobs(experiment: str, grids: Sequence[str], base: Settings, workdir: Path) -> list[Job]:
    """A job for each point of the grids, once if two grids have it. A grid's settings take precedence over ``base``.

    A job is started without the settings that belong to other models than its own. Raises UserError on a bad value, or
    if a grid sets a hyper-parameter that none of its models has.
    """
    jobs: dict[str, Job] = {}
    for point in itertools.chain.from_iterable(_points(experiment, grid, base) for grid in grids):
        model = [point["model"]] if "model" in point else []
        name = ",".join([*model, *(f"{name}={value}" for name, value in sorted(point.items()) if name != "model")])
        name = re.sub(r"[^\w.,=+-]", "_", name)
        if name not in jobs:
            jobs[name] = _make_job(experiment, name, workdir / name, {**base, **point})
    return list(jobs.values())


def _points(experiment: str, grid: str, base: Settings) -> Iterator[Settings]:
    """The points of one grid, after its flags are checked."""
    points = parse_grid(grid)
    names = {name for point in points for name in point}
    if reserved := sorted(names & SET_BY_SWEEP):
        raise UserError(f"--grid: {reserved[0]} is set for each run by the sweep; leave it out")
    models = list(dict.fromkeys(_model_name(experiment, {**base, **point}) for point in points))
    try:
        EXPERIMENTS[experiment].check_hyper_parameters(names, models)
    except UserError as error:
        raise UserError(f"--grid: {error}") from None
    yield from points


def _model_name(experiment: str, settings: Settings) -> str:
    return settings.get("model", EXPERIMENTS[experiment].flag_defaults()["model"])


def _make_job(experiment: str, name: str, workdir: Path, settings: Settings) -> Job:
    flags_of = EXPERIMENTS[experiment]
    model_name = _model_name(experiment, settings)
    settings = {flag: settings[flag] for flag in flags_of.used_by(model_name, settings)}
    try:
        configs = flags_of.setup(flags_of.parse(settings)).configs()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return Job(experiment, name, workdir, settings, model_name, configs)
