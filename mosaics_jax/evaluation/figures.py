"""Figures, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0b5394", "#cc4125", "#38761d", "#674ea7")
SMOOTHING = 20  # steps that a training curve is averaged over, at most a twentieth of the run


def draw_loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: str | Path) -> None:
    """Training loss (thin, smoothed) and validation loss (dots) against the step, one colour a run; a PNG.

    ``runs``: for each name the records of its metrics (`training.metrics.read_metrics`).
    """
    figure = Figure(figsize=(7.0, 4.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
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
    # The first tenth falls from ln V and would flatten all that matters.
    axes.set_ylim(lowest - 0.04 * (highest - lowest), highest + 0.04 * (highest - lowest))
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy (nats a token)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
