"""Figures of the moon networks (v1 section 4), each as PNG and as PDF.

Shapes here: J generated steps, R contexts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from mosaics_jax.evaluation.figures import COLORS, new_figure, save_figure


def draw_continuations(x_TC: np.ndarray, generated: Mapping[str, np.ndarray], context: int, path: Path) -> None:
    """Draws the sine of each moon over time, and the continuation by each network after ``context`` points.

    x_TC: the true signal. ``generated`` maps the name of a network to its points (J, C). ``path`` has no suffix.
    """
    steps = len(next(iter(generated.values())))
    begin, end = max(0, context - 2 * steps), min(len(x_TC), context + steps)
    moons = x_TC.shape[1] // 2
    figure = new_figure(7.0, 1.5 * moons + 0.6)
    for moon, axes in enumerate(np.atleast_1d(figure.subplots(moons, sharex=True))):
        axes.plot(np.arange(begin, end), x_TC[begin:end, 2 * moon], color="0.6", linewidth=3, label="signal")
        for color, (name, points) in zip(COLORS, generated.items(), strict=False):
            axes.plot(
                np.arange(context, context + steps), points[:, 2 * moon], ".-", color=color, markersize=3, label=name
            )
        axes.axvline(context - 0.5, color="0.3", linewidth=0.8, linestyle=":")
        axes.set_ylabel(f"moon {moon + 1}")
        axes.set_ylim(-1.35, 1.35)
    axes.set_xlabel(f"step (context: {context} points)")
    figure.axes[0].legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    save_figure(figure, path)


def draw_error_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    contexts_R: np.ndarray,
    period_marks: Mapping[str, tuple[Sequence[float], float]],
    metric: str,
    path: Path,
) -> None:
    """Draws error against context length: one panel per signal, with one curve per network.

    ``curves[signal][network]`` holds errors (seeds, R). The median over seeds is drawn, and the range between the least
    and the largest is shaded. ``period_marks[signal]`` holds the periods of the single moons and the total period, in
    steps; they are drawn as vertical lines. ``metric`` labels the vertical axis. ``path`` has no suffix.
    """
    figure = new_figure(3.6 * len(curves), 3.2)
    for axes, (signal, networks) in zip(
        np.atleast_1d(figure.subplots(1, len(curves), sharey=True)), curves.items(), strict=True
    ):
        single_periods, total = period_marks[signal]
        for period in single_periods:
            axes.axvline(period, color="0.55", linewidth=0.8, linestyle=":")
        axes.axvline(total, color="0.2", linewidth=1.0, linestyle="--")
        for color, (name, errors) in zip(COLORS, networks.items(), strict=False):
            axes.plot(contexts_R, np.median(errors, axis=0), color=color, linewidth=1.3, label=name)
            if len(errors) > 1:
                axes.fill_between(
                    contexts_R, errors.min(axis=0), errors.max(axis=0), color=color, alpha=0.2, linewidth=0
                )
        axes.set_xlim(0, min(contexts_R[-1], 2 * total))
        axes.set_title(signal, fontsize=10)
        axes.set_xlabel("context length (steps)")
        axes.text(total, 0.02, " total period", fontsize=7, transform=axes.get_xaxis_transform())
        axes.text(max(single_periods), 0.02, " single periods", fontsize=7, transform=axes.get_xaxis_transform())
    first = figure.axes[0]
    first.set_ylim(bottom=0)
    first.set_ylabel(metric)
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="center right")
    save_figure(figure, path)


def draw_matrices(matrices: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Draws the modulus matrices of one network, with the value of each entry.

    ``matrices`` maps W_phi, W_psi and W_z to matrices (`evaluation.moons.modulus_matrices`). ``path`` has no suffix.
    """
    figure = new_figure(2.5 * len(matrices), 2.9)
    labels = {"W_phi": ("moon", "key channel"), "W_psi": ("moon", "value channel"), "W_z": ("answer channel", "moon")}
    for axes, (name, matrix) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items(), strict=True):
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=max(matrix.max(), 1e-9))
        for (row, column), value in np.ndenumerate(matrix):
            dark = value > 0.6 * matrix.max()
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        x_label, y_label = labels[name]
        axes.set_title(f"|{name}|", fontsize=10)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        for axis, size in ((axes.xaxis, matrix.shape[1]), (axes.yaxis, matrix.shape[0])):
            axis.set_ticks(range(size), labels=[str(i + 1) for i in range(size)])
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def draw_attention(weights: Mapping[str, np.ndarray], signal: str, path: Path) -> None:
    """Draws how much each head attends to each past step: one panel per head, query step against stored step.

    ``weights`` maps the name of a network to its weights (H, T, T). ``signal`` names the signal in the title. ``path``
    has no suffix.
    """
    panels = [
        (f"{name}, head {h + 1}" if len(w) > 1 else name, w[h]) for name, w in weights.items() for h in range(len(w))
    ]
    figure = new_figure(2.4 * len(panels) + 0.4, 2.9)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True))
    for axes, (name, matrix) in zip(all_axes, panels, strict=True):
        _attention_panel(axes, name, matrix)
    all_axes[0].set_ylabel("query step")
    figure.suptitle(f"attention over time, {signal}", fontsize=10)
    save_figure(figure, path)


def _attention_panel(axes: Axes, name: str, matrix_TT: np.ndarray) -> None:
    # Each square of several steps shows its largest weight: single weights would fall between the dots of the image.
    size = max(1, len(matrix_TT) // 200)
    length = len(matrix_TT) // size * size
    coarse = matrix_TT[:length, :length].reshape(length // size, size, length // size, size).max(axis=(1, 3))
    axes.imshow(
        coarse, cmap="magma_r", vmin=0, vmax=max(float(np.quantile(coarse, 0.995)), 1e-9), extent=(0, length, length, 0)
    )
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("stored step")
