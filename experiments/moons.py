"""Networks for moons as training tasks, and their evaluation: what the experiments on them share."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.moons import MoonsConfig, Periods, evaluation_windows, show, total_period, windows
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
from mosaics_jax.models.moons import MoonMosaic, MoonMosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.loop import TrainResult
from mosaics_jax.training.mesh import mean_over_devices
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.progress import say
from mosaics_jax.training.state import Task

CLIP = 0.5  # largest error that the loss still tells from larger ones
FINAL_STEPS = 20  # whose mean is the final loss
# The published optimizer. Its matrices hold each number of ours twice, so that gradients are half of ours, which Adam
# does not notice but for epsilon: 2e-8 here is 1e-8 there.
MOON_OPTIMIZER: dict[str, Any] = {
    "learning_rate": 1e-2,
    "min_learning_rate": 5e-6,
    "warmup_steps": 0,
    "decay": "linear",
    "weight_decay": 0.0,
    "beta2": 0.999,
    "epsilon": 2e-8,
    "bias_correction": False,
    "clip_norm": 0.0,
}
VECTOR_FLAG = "--xla_cpu_prefer_vector_width=512"
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


def one_device_a_core(*rows: int) -> None:
    """Makes JAX see a device for each core of a CPU, as far as they divide ``rows``; call before anything runs.

    XLA splits an operation among cores, and these networks are many small operations: two cores work on two sequences
    in half the time of one, but on one sequence in two thirds. GPUs and TPUs are left as they are.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{VECTOR_FLAG} {given}".strip()
    if "device_count" in given:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = next(n for n in range(cores, 0, -1) if all(count % n == 0 for count in rows))
    with contextlib.suppress(RuntimeError):  # a caller has used JAX already, or has said how many devices it wants
        jax.config.update("jax_num_cpu_devices", devices)


@dataclasses.dataclass
class Network:
    """One architecture in several copies: how it is trained, and after that what came out, a tree of each copy."""

    name: str
    config: MoonMosaicConfig
    task: Task
    params: list[Params] = dataclasses.field(default_factory=list)
    final_losses: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def take(self, result: TrainResult, run: Path) -> None:
        """Takes the parameters and the final losses of each copy from a finished run and its metrics."""
        stacked = jax.device_get(result.params)
        copies = len(jax.tree.leaves(stacked)[0])
        self.params = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(copies)]
        last = [record for record in read_metrics(run) if record["kind"] == "train"][-FINAL_STEPS:]
        self.final_losses = [float(np.mean([record[f"loss_{i}"] for record in last])) for i in range(copies)]
        self.seconds = result.seconds


def moon_network(config: MoonMosaicConfig, moons: MoonsConfig, seeds: int, seed: int) -> Network:
    """``seeds`` networks that are trained at once on the same batches, each from parameters of its own.

    The loss is that of the published run: the mean of the squared error of each number, clipped at CLIP. What is
    minimised is the sum over networks, so that each is trained as if it were alone; shown is their mean.
    """
    model = MoonMosaic(config)
    name = f"{NUMBERS.get(config.heads, config.heads)}_head{'s' * (config.heads > 1)}"

    def init(key: Array) -> Params:
        blank = jnp.zeros((1, 2, 2 * config.moons))
        # A key for each copy that does not depend on how many there are.
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(seeds))
        params = jax.vmap(lambda key: model.init(key, blank)["params"])(keys)
        return nn.meta.add_axis(params, 0, {nn.PARTITION_NAME: "seeds"})

    def loss_of_one(params: Params, x_BTC: Array) -> Array:
        predicted_BTC: Any = model.apply({"params": params}, x_BTC[:, :-1])
        return jnp.mean(jnp.square(jnp.clip(predicted_BTC - x_BTC[:, 1:], -CLIP, CLIP)))

    def loss(params: Params, x_BTC: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        losses = mean_over_devices(jax.vmap(loss_of_one, in_axes=(0, None)))(params, x_BTC)
        return jnp.sum(losses), {"loss": jnp.mean(losses)} | {f"loss_{i}": losses[i] for i in range(seeds)}

    task = Task(
        name=f"three_moons/{name}",
        init=init,
        loss=loss,
        train_data=windows(moons, seed, jax.process_index(), jax.process_count()),
        config={"model": dataclasses.asdict(config), "data": dataclasses.asdict(moons), "seeds": seeds},
        tokens_per_step=moons.batch_size * moons.context_length * seeds,
        unit="points",
    )
    return Network(name, config, task)


def signals(moons: MoonsConfig) -> dict[str, Periods]:
    """The two signals that are evaluated: one trained on, and the held-out one.

    The former is that of longest total period below the latter's: (0.5, 1, 2.5) for three moons, as published.
    """
    shorter = [periods for periods in moons.train if total_period(periods) < total_period(moons.held_out)]
    return {"train": max(shorter or moons.train, key=total_period), "held_out": moons.held_out}


def evaluate(
    networks: list[Network], moons: MoonsConfig, starts: int, seed: int, authors_metric: bool = False
) -> dict[str, Any]:
    """What ``results.json`` says: for each network a list ``seeds``, and the periods of both signals, in steps."""
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
    x = {name: evaluation_windows(moons, periods, starts, seed) for name, periods in signals(moons).items()}
    for network in networks:
        copies = []
        for i, params in enumerate(network.params):
            found = head_disentanglement(params, network.config)
            copy: dict[str, Any] = {
                "final_loss": network.final_losses[i],
                "disentangled": found.disentangled,
                "moon_of_head": list(found.unit_sources),
                "least_share_of_head": list(found.unit_shares),
                "moduli": {name: matrix.tolist() for name, matrix in modulus_matrices(params).items()},
                "error": {},
                "knee": {},
            }
            for name in x:
                contexts, errors = error_curve(params, network.config, x[name], authors_metric)
                results["contexts"] = contexts.tolist()
                copy["error"][name] = errors.tolist()
                copy["knee"][name] = knee(contexts, errors)
            copies.append(copy)
            say(f"{network.name}, network {i + 1} of {len(network.params)}: evaluated")
        results[network.name] = {"train_seconds": network.seconds, "seeds": copies}
    return results


def report(
    results: dict[str, Any], networks: list[Network], moons: MoonsConfig, workdir: Path, authors_metric: bool
) -> None:
    """Writes ``results.json`` and all figures, of the copy with the least final loss, and prints the table."""
    staging.write_file(workdir / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    sets = signals(moons)
    titles = {name: f"{name.replace('_', ' ')}: periods {show(periods)}" for name, periods in sets.items()}
    metric = "mean absolute error, 25 steps" + (" (authors' metric)" if authors_metric else "")
    figures.draw_error_curves(
        {
            titles[name]: {
                pretty(n.name): np.array([copy["error"][name] for copy in results[n.name]["seeds"]]) for n in networks
            }
            for name in sets
        },
        np.array(results["contexts"]),
        {titles[name]: (signal["periods"], signal["total"]) for name, signal in results["signals"].items()},
        metric,
        workdir / "error",
    )
    x_TC = evaluation_windows(moons, moons.held_out, 1, seed=0)[0]
    context = min(int(1.5 * max(results["signals"]["held_out"]["periods"])), len(x_TC) - STEPS)
    made, weights = {}, {}
    for network in networks:
        params = network.params[int(np.argmin(network.final_losses))]
        after = continuations(params, network.config, jnp.asarray(x_TC[None]), (context,), STEPS - 1)
        made[pretty(network.name)] = np.asarray(after)[0, 0]
        weights[pretty(network.name)] = attention(params, network.config, x_TC)
        figures.draw_matrices(modulus_matrices(params), pretty(network.name), workdir / f"matrices_{network.name}")
    figures.draw_continuations(x_TC, made, context, workdir / "continuation")
    figures.draw_attention(weights, titles["held_out"], workdir / "attention")
    say(table(results, networks))
    say(f"figures and results.json: {workdir}")


def pretty(name: str) -> str:
    return name.replace("_", " ")


def table(results: dict[str, Any], networks: list[Network]) -> str:
    """A line for each network: medians over its copies."""
    signal = results["signals"]["held_out"]
    periods = ", ".join(f"{p:.1f}" for p in signal["periods"])
    lines = [
        f"held-out periods in steps: {periods}; all together: {signal['total']:.1f}",
        f"{'network':<12}  {'final loss':>10}  {'knee':>6}  {'error at knee + 60':>18}  {'disentangled':>12}  "
        f"{'training':>9}",
    ]
    for network in networks:
        copies = results[network.name]["seeds"]
        knees = [copy["knee"]["held_out"] for copy in copies]
        after = [
            copy["error"]["held_out"][min(k + 60, len(results["contexts"])) - 1]
            for copy, k in zip(copies, knees, strict=True)
            if k is not None
        ]
        share = sum(copy["disentangled"] for copy in copies)
        lines.append(
            f"{pretty(network.name):<12}  {np.median([c['final_loss'] for c in copies]):>10.5f}  "
            f"{np.median([k for k in knees if k is not None]) if after else float('nan'):>6.0f}  "
            f"{np.median(after) if after else float('nan'):>18.3f}  {f'{share} of {len(copies)}':>12}  "
            f"{network.seconds:>7.1f} s"
        )
    return "\n".join(lines)
