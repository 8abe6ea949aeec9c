"""The results of three moons: scores of trained networks, figures and a table."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.moons import MoonsConfig, Periods, evaluation_windows, show, total_period
from mosaics_jax.evaluation import moon_figures as figures
from mosaics_jax.evaluation.moons import (
    STEPS,
    attention,
    continuations,
    error_curve,
    head_disentanglement,
    knee,
    modulus_matrices,
)
from mosaics_jax.models.moons import MoonMosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.shapes import Params
from mosaics_jax.training.progress import say


@dataclasses.dataclass(frozen=True)
class TrainedCopies:
    """What training made of the copies of one network.

    params: a tree of each copy. final_losses: of each copy, the mean training loss over the last steps.
    seconds: spent in training steps.
    """

    name: str
    config: MoonMosaicConfig
    params: list[Params]
    final_losses: list[float]
    seconds: float


def signals(moons: MoonsConfig) -> dict[str, Periods]:
    """The periods of the two signals that networks are evaluated on: one of the training signals, the held-out one.

    The training signal is the one of longest total period below that of the held-out signal: (0.5, 1, 2.5) for three
    moons, as published.
    """
    shorter = [periods for periods in moons.train if total_period(periods) < total_period(moons.held_out)]
    return {"train": max(shorter or moons.train, key=total_period), "held_out": moons.held_out}


def evaluate(
    networks: list[TrainedCopies], moons: MoonsConfig, starts: int, seed: int, authors_metric: bool = False
) -> dict[str, Any]:
    """The contents of ``results.json``: the signals' periods in steps, and of each network its copies' scores.

    An error is the mean over windows of each signal from ``starts`` random starts.
    """
    in_steps = moons.points_per_unit
    results: dict[str, Any] = {
        "authors_metric": authors_metric,
        "signals": {
            name: {
                "periods": [float(period) * in_steps for period in periods],
                "total": float(total_period(periods)) * in_steps,
            }
            for name, periods in signals(moons).items()
        },
    }
    windows = {name: evaluation_windows(moons, periods, starts, seed) for name, periods in signals(moons).items()}
    for network in networks:
        copies = []
        for i in range(len(network.params)):
            copy, results["contexts"] = copy_scores(network, i, windows, authors_metric)
            copies.append(copy)
            say(f"{network.name}, network {i + 1} of {len(network.params)}: evaluated")
        results[network.name] = {"train_seconds": network.seconds, "seeds": copies}
    return results


def copy_scores(
    network: TrainedCopies, i: int, windows: dict[str, np.ndarray], authors_metric: bool
) -> tuple[dict[str, Any], list[int]]:
    """The scores of copy ``i`` of a network on each signal, and the context lengths of its error curves."""
    params = network.params[i]
    disentanglement = head_disentanglement(params, network.config)
    copy: dict[str, Any] = {
        "final_loss": network.final_losses[i],
        "disentangled": disentanglement.disentangled,
        "moon_of_head": list(disentanglement.unit_sources),
        "least_share_of_head": list(disentanglement.unit_shares),
        "moduli": {name: matrix.tolist() for name, matrix in modulus_matrices(params).items()},
        "error": {},
        "knee": {},
    }
    contexts = np.array([], int)
    for name, x_BTC in windows.items():
        contexts, errors = error_curve(params, network.config, x_BTC, authors_metric)
        copy["error"][name] = errors.tolist()
        copy["knee"][name] = knee(contexts, errors)
    return copy, contexts.tolist()


def report(results: dict[str, Any], networks: list[TrainedCopies], moons: MoonsConfig, workdir: Path) -> None:
    """Writes ``results.json`` and all figures, prints the table. Figures show the copy with the least final loss."""
    staging.write_file(workdir / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    titles = {name: f"{name.replace('_', ' ')}: periods {show(periods)}" for name, periods in signals(moons).items()}
    metric = "mean absolute error, 25 steps" + (" (authors' metric)" if results["authors_metric"] else "")
    curves = {
        title: {
            readable(network.name): np.array([copy["error"][name] for copy in results[network.name]["seeds"]])
            for network in networks
        }
        for name, title in titles.items()
    }
    periods = {titles[name]: (signal["periods"], signal["total"]) for name, signal in results["signals"].items()}
    figures.draw_error_curves(curves, np.array(results["contexts"]), periods, metric, workdir / "error")

    x_TC = evaluation_windows(moons, moons.held_out, 1, seed=0)[0]
    context = min(int(1.5 * max(results["signals"]["held_out"]["periods"])), len(x_TC) - STEPS)
    continued, weights = {}, {}
    for network in networks:
        params = network.params[int(np.argmin(network.final_losses))]
        after = continuations(params, network.config, jnp.asarray(x_TC[None]), (context,), STEPS - 1)
        continued[readable(network.name)] = np.asarray(after)[0, 0]
        weights[readable(network.name)] = attention(params, network.config, x_TC)
        figures.draw_matrices(modulus_matrices(params), readable(network.name), workdir / f"matrices_{network.name}")
    figures.draw_continuations(x_TC, continued, context, workdir / "continuation")
    figures.draw_attention(weights, titles["held_out"], workdir / "attention")
    say(table(results, networks))
    say(f"figures and results.json: {workdir}")


def readable(name: str) -> str:
    """``three_heads`` as three heads."""
    return name.replace("_", " ")


def table(results: dict[str, Any], networks: list[TrainedCopies]) -> str:
    """A row for each network: medians over its copies."""
    signal = results["signals"]["held_out"]
    rows = [("network", "final loss", "knee", "error at knee + 60", "disentangled", "training")]
    for network in networks:
        copies = results[network.name]["seeds"]
        knees = [copy["knee"]["held_out"] for copy in copies if copy["knee"]["held_out"] is not None]
        after = [
            copy["error"]["held_out"][min(copy["knee"]["held_out"] + 60, len(results["contexts"])) - 1]
            for copy in copies
            if copy["knee"]["held_out"] is not None
        ]
        rows.append(
            (
                readable(network.name),
                f"{np.median([copy['final_loss'] for copy in copies]):.5f}",
                f"{np.median(knees) if knees else float('nan'):.0f}",
                f"{np.median(after) if after else float('nan'):.3f}",
                f"{sum(copy['disentangled'] for copy in copies)} of {len(copies)}",
                f"{network.seconds:.1f} s",
            )
        )
    periods = ", ".join(f"{period:.1f}" for period in signal["periods"])
    return f"held-out periods in steps: {periods}; all together: {signal['total']:.1f}\n{aligned(rows)}"
