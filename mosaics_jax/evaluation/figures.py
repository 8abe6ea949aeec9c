"""Loss curves of training runs, and what all figures share. Figures are drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0b5394", "#cc4125", "#38761d", "#674ea7")
DOTS_PER_INCH = 200
SMOOTHING = 20  # records of a training curve that are averaged, at most a twentieth of the run


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes ``path``.png and ``path``.pdf; ``path`` has no suffix. Creates the directory if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH)
    figure.savefig(path.with_suffix(".pdf"))


def draw_loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: str | Path) -> None:
    """Draws training loss (thin, smoothed) and validation loss (dots) against the step, one colour per run.

    ``runs`` maps the name of a run to the records of its metrics (`training.metrics.read_metrics`). ``path`` is the
    PNG to write.
    """
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    lowest, highest = np.inf, -np.inf
    for color, (name, records) in zip(COLORS * len(runs), runs.items(), strict=False):
        train = np.array([(r["step"], r["loss"]) for r in records if r["kind"] == "train"])
        window = max(1, min(SMOOTHING, len(train) // 20))
        smooth = np.convolve(train[:, 1], np.ones(window) / window, mode="valid")
        axes.plot(train[window - 1 :, 0], smooth, color=color, linewidth=1.0, alpha=0.55, label=f"{name}, training")
        evaluations = np.array([(r["step"], r["loss"]) for r in records if r["kind"] == "eval"]).reshape(-1, 2)
        axes.plot(*evaluations.T, "o-", color=color, markersize=4, linewidth=1.6, label=f"{name}, validation")
        lowest = min(lowest, smooth.min(), *evaluations[:, 1])
        highest = max(highest, smooth[len(smooth) // 10 :].max())
    # The first tenth is left out of the scale: its fall from ln V would flatten the rest of the curve.
    axes.set_ylim(lowest - 0.04 * (highest - lowest), highest + 0.04 * (highest - lowest))
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy (nats a token)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)
