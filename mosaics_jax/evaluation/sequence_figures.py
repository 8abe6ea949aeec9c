"""Figures that compare sequence models on RegBench and MQAR, each as PNG and as PDF."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mosaics_jax.evaluation import published

# Model -> x -> a value for each seed.
Curves = Mapping[str, Mapping[int, Sequence[float]]]

DOTS_PER_INCH = 200
# A model looks the same in every figure. Attention and memories are dark, so that they stand out in print.
STYLES = {
    "mosaic": ("#0b5394", "o"),
    "transformer": ("#cc4125", "s"),
    "linear_transformer": ("#e69138", "v"),
    "retnet": ("#a64d79", "^"),
    "gla": ("#8e7cc3", "<"),
    "rwkv": ("#6aa84f", ">"),
    "s4d": ("#45818e", "D"),
    "h3": ("#bf9000", "P"),
    "hyena": ("#76a5af", "X"),
    "mamba": ("#38761d", "p"),
    "deltanet": ("#674ea7", "h"),
    "lstm": ("#7f6000", "*"),
}
OTHER = ("#444444", "d")
PUBLISHED_STYLE = {"linestyle": (0, (4, 2)), "linewidth": 0.9, "markerfacecolor": "white", "markersize": 5}


def draw_regbench(accuracy: Curves, tvd: Curves, ngram: tuple[str, float, float], path: Path) -> None:
    """Accuracy and TVD against the number of training automata (v1 figure 9); means over seeds, bars to the extremes.

    ``ngram``: name, accuracy and TVD of an in-context n-gram model. Published values of the models that are drawn
    appear dashed with open markers. ``path`` without a suffix.
    """
    figure = _figure(7.6, 4.1)
    panels = (
        (accuracy, published.REGBENCH_ACCURACY, ngram[1], "accuracy on held-out automata"),
        (tvd, published.REGBENCH_TVD, ngram[2], "TVD on held-out automata"),
    )
    for axes, (curves, reference, level, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.axhline(level, color="0.5", linewidth=1.0, linestyle=":")
        for model in curves:
            color, marker = STYLES.get(model, OTHER)
            if model in reference:
                axes.plot(published.REGBENCH_NUM_TRAIN, reference[model], marker, color=color, **PUBLISHED_STYLE)
        for model, points in curves.items():
            _curve(axes, model, points)
        axes.set_xscale("log")
        ticks = sorted({*published.REGBENCH_NUM_TRAIN, *(x for points in curves.values() for x in points)})
        axes.set_xticks(ticks, [f"{x:,}" for x in ticks], rotation=45)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training automata")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    notes = [
        Line2D([], [], color="0.3", marker="o", label="measured here", linewidth=1.6, markersize=5),
        # The dictionary mixes types of values.
        Line2D([], [], color="0.3", marker="o", label="published", **PUBLISHED_STYLE),  # type: ignore[arg-type]
        Line2D([], [], color="0.5", linestyle=":", label=f"in-context {ngram[0]}"),
    ]
    _legend(figure, accuracy, notes)
    _save(figure, path)


def draw_mqar(panels: Mapping[str, Curves], path: Path) -> None:
    """Accuracy at the queries against the width, a panel for each title (arXiv 2312.04927, figure 2)."""
    figure = _figure(max(2.4 * len(panels) + 0.6, 4.4), 3.8)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        for model, points in curves.items():
            _curve(axes, model, points)
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in curves.values() for x in points})
        axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("width of the model")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    all_axes[0].set_ylabel("accuracy at the queries")
    _legend(figure, {model for curves in panels.values() for model in curves}, [])
    _save(figure, path)


def _curve(axes: Axes, model: str, points: Mapping[int, Sequence[float]]) -> None:
    color, marker = STYLES.get(model, OTHER)
    xs = sorted(points)
    means = [sum(points[x]) / len(points[x]) for x in xs]
    spread = [
        [mean - min(points[x]) for x, mean in zip(xs, means, strict=True)],
        [max(points[x]) - mean for x, mean in zip(xs, means, strict=True)],
    ]
    axes.errorbar(xs, means, spread, color=color, marker=marker, linewidth=1.6, markersize=5, capsize=2)


def _legend(figure: Figure, models: Collection[str], notes: list[Line2D]) -> None:
    lines = []
    for model in [*(name for name in STYLES if name in models), *sorted(set(models) - set(STYLES))]:
        color, marker = STYLES.get(model, OTHER)
        lines.append(Line2D([], [], color=color, marker=marker, label=model.replace("_", " "), markersize=5))
    columns = max(2, int(figure.get_figwidth() / 1.5))
    figure.legend(handles=[*lines, *notes], loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH)
    figure.savefig(path.with_suffix(".pdf"))
