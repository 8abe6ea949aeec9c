"""Figures that compare sequence models on RegBench and MQAR, each as PNG and as PDF."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mosaics_jax.evaluation import published
from mosaics_jax.evaluation.figures import new_figure, save_figure

# Model -> x -> one value per seed.
Curves = Mapping[str, Mapping[int, Sequence[float]]]

# A model has the same colour and marker in every figure. Mosaic and transformer are dark, to stand out in print.
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
OTHER_STYLE = ("#444444", "d")
PUBLISHED_STYLE = {"linestyle": (0, (4, 2)), "linewidth": 0.9, "markerfacecolor": "white", "markersize": 5}


def draw_regbench(accuracy: Curves, tvd: Curves, ngram: tuple[str, float, float], path: Path) -> None:
    """Draws accuracy and TVD against the number of training automata (v1 figure 9): means over seeds, bars to extremes.

    ``ngram`` holds the name, accuracy and TVD of an in-context n-gram model. The published values of the drawn models
    are dashed, with open markers. ``path`` has no suffix.
    """
    figure = new_figure(7.6, 4.1)
    panels = (
        (accuracy, published.REGBENCH_ACCURACY, ngram[1], "accuracy on held-out automata"),
        (tvd, published.REGBENCH_TVD, ngram[2], "TVD on held-out automata"),
    )
    for axes, (curves, reference, level, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.axhline(level, color="0.5", linewidth=1.0, linestyle=":")
        for model in curves:
            color, marker = STYLES.get(model, OTHER_STYLE)
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
        # mypy: the values of the dictionary have several types.
        Line2D([], [], color="0.3", marker="o", label="published", **PUBLISHED_STYLE),  # type: ignore[arg-type]
        Line2D([], [], color="0.5", linestyle=":", label=f"in-context {ngram[0]}"),
    ]
    _legend(figure, accuracy, notes)
    save_figure(figure, path)


def draw_mqar(panels: Mapping[str, Curves], path: Path) -> None:
    """Draws accuracy at the queries against the width of the model, one panel per title (arXiv 2312.04927, figure 2).

    ``path`` has no suffix.
    """
    figure = new_figure(max(2.4 * len(panels) + 0.6, 4.4), 3.8)
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
    save_figure(figure, path)


def _curve(axes: Axes, model: str, points: Mapping[int, Sequence[float]]) -> None:
    color, marker = STYLES.get(model, OTHER_STYLE)
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
        color, marker = STYLES.get(model, OTHER_STYLE)
        lines.append(Line2D([], [], color=color, marker=marker, label=model.replace("_", " "), markersize=5))
    columns = max(2, int(figure.get_figwidth() / 1.5))
    figure.legend(handles=[*lines, *notes], loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
