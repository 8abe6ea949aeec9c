"""What many results of one experiment come to: a table and the figure."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.sweeps import results
from mosaics_jax.evaluation.sequence_figures import draw_mqar, draw_regbench
from mosaics_jax.models.registry import ALIASES
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned, markdown

Result = dict[str, Any]
SEEDS = ("seed", "data_seed")  # settings over which a curve takes the mean
BETWEEN_STEPS = (  # settings of logs and checkpoints, which change no score
    *("eval_every", "sample_every", "log_every", "checkpoint_every", "checkpoint_every_minutes"),
    *("keep_checkpoints", "keep_every_minutes", "profile_start", "profile_steps"),
)
FOLLOWS = {"warmup_steps": "steps", "min_learning_rate": "learning_rate"}  # setting -> the one it follows from


@dataclasses.dataclass(frozen=True)
class Summary:
    """How results of an experiment are shown.

    point: the fields of a result that place it in the figure; of the results at one point the best settings are drawn.
    scores: the fields that are measured, with their headings. draw(results, path): the figure of the best results.
    """

    point: tuple[str, ...]
    scores: dict[str, str]
    draw: Callable[[list[Result], Path], None]

    def describe(self, result: Result) -> str:
        """The scores of one result in a line."""
        return ", ".join(f"{heading} {result[name]:.3f}" for name, heading in self.scores.items())


def read_all(workdir: Path, experiment: str) -> list[Result]:
    """All results in the directories of ``workdir``. Raises UserError if one is of something else."""
    every = (results.read(path.parent, experiment) for path in sorted(workdir.glob(f"*/{results.FILE_NAME}")))
    return [result for result in every if result is not None]


def settings_of(every: Sequence[Result]) -> list[dict[str, Any]]:
    """The settings of each result, by the name of the config field or flag.

    They are the fields of the configs that ran. Only where all results are of earlier programs, which recorded the
    flags that were given instead, are they those flags: tables of such results stay as they were published.
    """
    if _are_flags(every):
        return [result["settings"] for result in every]
    settings = []
    for result in every:
        fields = results.flat(results.configs_of(result))
        settings.append({name.rpartition(".")[2]: value for name, value in fields.items()})
    return settings


def _are_flags(every: Sequence[Result]) -> bool:
    return all("settings" in result for result in every)


def varying_settings(every: Sequence[Result], aside: Iterable[str]) -> list[str]:
    """The names of settings that have several values among the results, but for those in ``aside``.

    A model without a hyper-parameter has no value for it; a flag that was not given has one, its default. What follows
    from another setting (FOLLOWS) varies if it does among results with the same value of that setting.
    """
    settings, flags = settings_of(every), _are_flags(every)
    values: dict[str, dict[str, set[str]]] = collections.defaultdict(lambda: collections.defaultdict(set))
    for name in dict.fromkeys(name for each in settings for name in each):
        for each in settings:
            if flags or name in each:
                values[name][str(each.get(FOLLOWS.get(name, "")))].add(str(each.get(name)))
    aside = {*aside, *(() if flags else ("steps",))}  # the configs of every result have steps, shown in a column
    return [name for name, groups in values.items() if name not in aside and max(map(len, groups.values())) > 1]


def best(every: Sequence[Result], point: tuple[str, ...]) -> list[Result]:
    """At each point, all seeds of the settings whose mean validation accuracy is best."""
    points: dict[tuple, dict[tuple, list[Result]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for result, settings in zip(every, settings_of(every), strict=True):
        aside = (*point, *SEEDS, *BETWEEN_STEPS)
        rest = {name: value for name, value in settings.items() if name not in aside}
        points[tuple(result[name] for name in point)][tuple(sorted(rest.items()))].append(result)

    def validation(group: list[Result]) -> float:
        return sum(result["validation_accuracy"] for result in group) / len(group)

    return [result for groups in points.values() for result in max(groups.values(), key=validation)]


def report(every: Sequence[Result], summary: Summary, workdir: Path) -> str:
    """Draws figure.png and figure.pdf, writes results.md, and returns the table for the terminal."""
    drawn = best(every, summary.point)
    summary.draw(drawn, workdir / "figure")
    rows = table(every, drawn, summary)
    staging.write_file(workdir / "results.md", markdown(rows).encode())
    return f"\n{aligned(rows)}\n\nfigure.png, figure.pdf and results.md: {workdir}"


def table(every: Sequence[Result], drawn: list[Result], summary: Summary) -> list[tuple[str, ...]]:
    """A row for each result, with the settings in which the results differ; the last column marks the drawn ones."""
    shown = (*summary.point, "seed")
    rows = [(*shown, "other settings", "parameters", *summary.scores.values(), "steps", "seconds", "machine", "drawn")]
    settings_of_each = settings_of(every)
    varying = varying_settings(every, (*shown, *BETWEEN_STEPS))
    with_settings = zip(every, settings_of_each, strict=True)
    for result, settings in sorted(with_settings, key=lambda pair: [pair[0][name] for name in shown]):
        rows.append(
            (
                *(_text(result[name]) for name in shown),
                ", ".join(f"{name}={settings[name]}" for name in varying if name in settings),
                _text(result["params"]),
                *(f"{result[name]:.3f}" for name in summary.scores),
                _text(result["steps"]),
                f"{result['seconds']:,.0f}",
                describe_machine(result["machine"]),
                "yes" if result in drawn else "",
            )
        )
    return rows


def describe_machine(machine: dict[str, Any]) -> str:
    """The machine of a run (`experiments.results.machine`) in a few words."""
    cores = machine.get("cores")
    count = f"{machine['devices']} x" if cores is None else f"{cores} core{'s' * (cores != 1)} of"
    return f"{count} {machine['device']}, jax {machine['jax']}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _curves(drawn: list[Result], x: str, score: str) -> dict[str, dict[int, list[float]]]:
    """Model -> x -> the score of each seed. Figures know a model with two names by the one in ALIASES."""
    aliases = {name: alias for alias, name in ALIASES.items()}
    curves: dict[str, dict[int, list[float]]] = {}
    for result in drawn:
        model = str(result["model"])
        model = aliases.get(model, model)
        curves.setdefault(model, {}).setdefault(result[x], []).append(result[score])
    return curves


def _draw_regbench(drawn: list[Result], path: Path) -> None:
    grams = {name: scores for name, scores in drawn[0]["baselines"].items() if name.endswith("gram")}
    name = min(grams, key=lambda name: grams[name]["tvd"])
    draw_regbench(
        _curves(drawn, "num_train", "accuracy"),
        _curves(drawn, "num_train", "tvd"),
        (name, grams[name]["accuracy"], grams[name]["tvd"]),
        path,
    )


def _draw_mqar(drawn: list[Result], path: Path) -> None:
    panels = sorted({(result["num_pairs"], result["context_length"]) for result in drawn})
    draw_mqar(
        {
            f"{pairs} pairs, length {length}": _curves(
                [r for r in drawn if (r["num_pairs"], r["context_length"]) == (pairs, length)], "n_embd", "accuracy"
            )
            for pairs, length in panels
        },
        path,
    )


SUMMARIES = {
    "regbench": Summary(
        point=("model", "num_train"),
        scores={"validation_accuracy": "validation accuracy", "accuracy": "accuracy", "tvd": "TVD"},
        draw=_draw_regbench,
    ),
    "mqar": Summary(
        point=("model", "num_pairs", "context_length", "n_embd"),
        scores={"validation_accuracy": "validation accuracy", "accuracy": "accuracy"},
        draw=_draw_mqar,
    ),
}
