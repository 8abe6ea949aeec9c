"""What many results of one experiment come to: a table, and the figure."""

import collections
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments import results
from mosaics_jax.evaluation.sequence_figures import draw_mqar, draw_regbench
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned, markdown

Result = dict[str, Any]
SEEDS = ("seed", "data_seed")  # settings over which a curve takes the mean
BETWEEN_STEPS = (  # settings of what is told and kept meanwhile, which change no score
    *("eval_every", "sample_every", "log_every", "checkpoint_every", "checkpoint_every_minutes"),
    *("keep_checkpoints", "keep_every_minutes", "profile_start", "profile_steps"),
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """How results of an experiment are shown.

    point: the fields of a result that make it another point of the figure; at each, the best settings are taken.
    scores: the fields that are measured, with their headings. draw: from the results that were taken.
    """

    point: tuple[str, ...]
    scores: dict[str, str]
    draw: Callable[[list[Result], Path], None]

    def describe(self, result: Result) -> str:
        return ", ".join(f"{heading} {result[name]:.3f}" for name, heading in self.scores.items())


def read_all(workdir: Path, experiment: str) -> list[Result]:
    """All results in the directories of ``workdir``. Raises UserError if one is of something else."""
    found = (results.read(path.parent, experiment) for path in sorted(workdir.glob(f"*/{results.FILE_NAME}")))
    return [result for result in found if result is not None]


def best(found: Iterable[Result], point: tuple[str, ...]) -> list[Result]:
    """At each point, all seeds of the settings whose mean validation accuracy is best."""
    points: dict[tuple, dict[tuple, list[Result]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for result in found:
        aside = (*point, *SEEDS, *BETWEEN_STEPS)
        rest = {name: value for name, value in result["settings"].items() if name not in aside}
        points[tuple(result[name] for name in point)][tuple(sorted(rest.items()))].append(result)

    def validation(group: list[Result]) -> float:
        return sum(result["validation_accuracy"] for result in group) / len(group)

    return [result for groups in points.values() for result in max(groups.values(), key=validation)]


def report(found: list[Result], summary: Summary, workdir: Path) -> str:
    """Draws figure.png and figure.pdf, writes results.md, and gives the table for the terminal."""
    taken = best(found, summary.point)
    summary.draw(taken, workdir / "figure")
    rows = table(found, taken, summary)
    staging.write_file(workdir / "results.md", markdown(rows).encode())
    return f"\n{aligned(rows)}\n\nfigure.png, figure.pdf and results.md: {workdir}"


def table(found: list[Result], taken: list[Result], summary: Summary) -> list[tuple[str, ...]]:
    """A row for each result, with the settings in which they differ; those that the figure shows are marked."""
    shown = (*summary.point, "seed")
    aside = (*shown, *BETWEEN_STEPS)
    names = dict.fromkeys(name for result in found for name in result["settings"] if name not in aside)
    varying = [name for name in names if len({str(result["settings"].get(name)) for result in found}) > 1]
    rows = [(*shown, "other settings", "parameters", *summary.scores.values(), "steps", "seconds", "machine", "drawn")]
    for result in sorted(found, key=lambda result: [result[name] for name in shown]):
        rows.append(
            (
                *(_text(result[name]) for name in shown),
                ", ".join(f"{name}={result['settings'][name]}" for name in varying if name in result["settings"]),
                _text(result["params"]),
                *(f"{result[name]:.3f}" for name in summary.scores),
                _text(result["steps"]),
                f"{result['seconds']:,.0f}",
                describe_machine(result["machine"]),
                "yes" if result in taken else "",
            )
        )
    return rows


def describe_machine(machine: dict[str, Any]) -> str:
    """What a run was made on (``results.machine``), in a few words."""
    cores = machine.get("cores")
    count = f"{machine['devices']} x" if cores is None else f"{cores} core{'s' * (cores != 1)} of"
    return f"{count} {machine['device']}, jax {machine['jax']}"


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _curves(taken: list[Result], x: str, score: str) -> dict[str, dict[int, list[float]]]:
    curves: dict[str, dict[int, list[float]]] = {}
    for result in taken:
        curves.setdefault(result["model"], {}).setdefault(result[x], []).append(result[score])
    return curves


def _draw_regbench(taken: list[Result], path: Path) -> None:
    grams = {name: scores for name, scores in taken[0]["baselines"].items() if name.endswith("gram")}
    name = min(grams, key=lambda name: grams[name]["tvd"])
    draw_regbench(
        _curves(taken, "num_train", "accuracy"),
        _curves(taken, "num_train", "tvd"),
        (name, grams[name]["accuracy"], grams[name]["tvd"]),
        path,
    )


def _draw_mqar(taken: list[Result], path: Path) -> None:
    panels = sorted({(result["num_pairs"], result["context_length"]) for result in taken})
    draw_mqar(
        {
            f"{pairs} pairs, length {length}": _curves(
                [r for r in taken if (r["num_pairs"], r["context_length"]) == (pairs, length)], "n_embd", "accuracy"
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
