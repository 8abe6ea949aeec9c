"""What a training step will take on TPUs or GPUs: memory, FLOPs, traffic and time, from the compiled step itself.

    python -m experiments.plan --flagfile=experiments/flags/plan_12.flags
    python -m experiments.plan --flagfile=experiments/flags/babistories_12.flags --topology=v5e:4x4 --mesh=fsdp:-1

Takes the flags of `babistories`, whose step it compiles for chips that are not here; no data is read. Needs libtpu,
``pip install 'jax[tpu]'`` on any machine, or for GPUs the packages jax-cuda13-plugin and jax-cuda13-pjrt. Scanned
layers take minutes on a CPU core, however many they are. The table in benchmarks/results/plan.md is made by
`benchmarks.plan`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import babistories, entry
from experiments.language import TextConfig, training_functions
from mosaics_jax.data.corpus import DEFAULT_VOCAB_SIZE
from mosaics_jax.errors import UserError
from mosaics_jax.models import LANGUAGE_MODELS
from mosaics_jax.ops import RetrievalForm
from mosaics_jax.planning.plan import Plan, TooLarge, make_plan
from mosaics_jax.planning.topology import GIB
from mosaics_jax.runtime import staging
from mosaics_jax.training.loop import LoopConfig
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import Task

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:2x2", "CHIP:SHAPE to plan for: v5e:4x4, v6e:8x8, v5p:4x4x4, h100:8, h100:4x8"
)
UTILISATION = flags.DEFINE_float("utilisation", 0.5, "share of the peak that products are assumed to reach", 0.01, 1.0)
JSON = flags.DEFINE_string("json", "", "file to write the numbers to")


def main(argv: list[str]) -> None:
    names = babistories.MODEL.value
    if len(names) != 1 or names[0] not in LANGUAGE_MODELS:
        raise UserError(f"--model={','.join(names)}: a plan is of one model, {' or '.join(LANGUAGE_MODELS)}")
    text, loop = entry.from_flags(TextConfig), entry.from_flags(LoopConfig)
    optimizer = entry.from_flags(OptimizerConfig)
    config_class, model_class = LANGUAGE_MODELS[names[0]]
    config: Any = entry.from_flags(config_class, vocab_size=flags.FLAGS.vocab_size or DEFAULT_VOCAB_SIZE)
    if TOPOLOGY.value.startswith("h100") and config.retrieval == RetrievalForm.AUTO.value:
        config = dataclasses.replace(config, retrieval=RetrievalForm.BLOCKWISE.value)
        print("retrieval: blockwise, as cuDNN's kernel cannot be compiled where there is no GPU")
    init, loss = training_functions(model_class(config), text.context_length, text.z_loss)
    tokens = text.batch_size * text.context_length
    task = Task(name=f"plan/{names[0]}", init=init, loss=loss, train_data=(), config={}, tokens_per_step=tokens)
    shape = jax.ShapeDtypeStruct((text.batch_size, text.context_length), jnp.int32)
    attended = config.n_layer * config.n_embd * text.context_length // 2
    batch = {"inputs": shape, "targets": shape}
    try:
        plan = make_plan(task, optimizer, loop.mesh, TOPOLOGY.value, batch, not config.weight_tying, attended)
    except TooLarge as error:
        raise UserError(f"{names[0]} on {TOPOLOGY.value}: {error}; {remedies(error, config, optimizer)}") from None
    print(f"{names[0]}, {plan.parameters:,} parameters, {text.batch_size} x {text.context_length} tokens a step")
    print(report(plan, TOPOLOGY.value, UTILISATION.value))
    if JSON.value:
        numbers = {"topology": TOPOLOGY.value, "model": names[0], **as_json(plan, UTILISATION.value)}
        staging.write_file(Path(JSON.value), (json.dumps(numbers, indent=2) + "\n").encode())


def remedies(error: TooLarge, config: Any, optimizer: OptimizerConfig) -> str:
    """What to change so that it fits, the cheapest first."""
    if error.state > 0.6 * error.hbm:
        return (
            f"parameters and optimizer alone are {error.state / GIB:.1f} GiB of that: split them over more chips "
            "(--mesh with more fsdp or tensor, or a larger --topology)"
        )
    ways = [] if config.remat == "full" else ["--remat=full"]
    ways += [f"--accumulate={2 * optimizer.accumulate}", "a smaller --batch_size", "more fsdp or sequence in --mesh"]
    return f"try {', then '.join(ways)}"


def report(plan: Plan, topology: str, utilisation: float) -> str:
    """The plan, for people."""
    used = sum(plan.memory.values())
    mesh = ",".join(f"{name}:{size}" for name, size in plan.mesh.items())
    lines = [
        f"{topology}: {plan.devices} chips, mesh {mesh}",
        "",
        f"memory a chip: {used / GIB:.2f} of {plan.hbm / GIB:.2f} GiB ({used / plan.hbm:.0%})",
        *(f"  {name:<18}{size / GIB:8.2f} GiB" for name, size in plan.memory.items()),
        "",
        f"model FLOPs a step: {plan.model_flops:.3e} over all chips, {plan.model_flops / plan.tokens:.3e} a token",
        f"executed FLOPs:     {plan.executed_flops * plan.devices:.3e} over all chips, in products of matrices",
        "",
        "sent by a chip in a step, at least:",
        *(
            f"  {kind:<18}{sent / GIB:8.3f} GiB in {count:,}"
            for kind, (count, sent) in sorted(plan.traffic.collectives.items())
        ),
    ]
    if plan.traffic.uncounted_loops:
        lines.append(f"  ({plan.traffic.uncounted_loops} loops of unknown length counted once)")
    seconds = plan.seconds(utilisation)
    assumed = {
        "products": f"executed FLOPs at {utilisation:.0%} of {plan.chip.flops / 1e12:.0f} TFLOP/s",
        "memory": f"{plan.traffic.hbm / GIB:.1f} GiB at {plan.chip.hbm_rate / 1e9:.0f} GB/s",
        "links": f"collectives at {plan.chip.link_rate / 1e9:.0f} GB/s, on rings, without latency",
    }
    least, most = max(seconds.values()), sum(seconds.values())
    rate, peak = plan.tokens / least, plan.devices * plan.chip.flops
    lines += [
        "",
        f"estimated step: {least:.3g} s, the largest of these (all overlap); {most:.3g} s, their sum, if nothing does",
        *(f"  {name:<18}{time:8.3g} s    {assumed[name]}" for name, time in seconds.items()),
        f"at the largest: {rate:,.0f} tokens/s, {plan.model_flops / (least * peak):.0%} of the peak in model FLOPs",
    ]
    return "\n".join(lines)


def as_json(plan: Plan, utilisation: float) -> dict[str, Any]:
    """The plan, for programs: bytes and seconds."""
    return {
        "devices": plan.devices,
        "mesh": plan.mesh,
        "parameters": plan.parameters,
        "tokens": plan.tokens,
        "memory": plan.memory,
        "hbm": plan.hbm,
        "model_flops": plan.model_flops,
        "executed_flops_per_device": plan.executed_flops,
        "collectives": {kind: {"count": n, "bytes": sent} for kind, (n, sent) in plan.traffic.collectives.items()},
        "hbm_bytes": plan.traffic.hbm,
        "utilisation": utilisation,
        "seconds": plan.seconds(utilisation),
    }


if __name__ == "__main__":
    entry.run(main)
