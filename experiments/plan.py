"""What a training step will take on TPUs or GPUs: memory, FLOPs, traffic and time, from the compiled step itself.

    python -m experiments.plan --flagfile=experiments/flags/plan_12.flags
    python -m experiments.plan --flagfile=experiments/flags/babistories_12.flags --topology=v5e:4x4 --mesh=fsdp:-1

Takes the flags of `babistories` and compiles its step for chips that are not here; no data is read. Needs libtpu,
``pip install 'jax[tpu]'`` on any machine, or for GPUs the packages jax-cuda13-plugin and jax-cuda13-pjrt. Scanned
layers take minutes on a CPU core, however many they are. Model FLOPs count products with parameters, and those of
attention and retrieval; what other models do over time is not counted. `benchmarks.plan` makes the table in
benchmarks/results/plan.md.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import entry
from experiments.entry.language_flags import define_language_flags, model_config_from_flags, run_from_flags
from experiments.entry.workdir import define_workdir_flag
from mosaics_jax.data.corpus import DEFAULT_VOCAB_SIZE
from mosaics_jax.errors import UserError
from mosaics_jax.models.registry import build_model
from mosaics_jax.ops import RetrievalForm
from mosaics_jax.planning.plan import TooLarge, make_plan
from mosaics_jax.planning.report import as_json, report
from mosaics_jax.planning.topology import GIB
from mosaics_jax.runtime import staging
from mosaics_jax.tasks.language import TextConfig
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.training.loop import LoopConfig
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import Task

TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:2x2", "CHIP:SHAPE to plan for: v5e:4x4, v6e:8x8, v5p:4x4x4, h100:8, h100:4x8"
)
UTILISATION = flags.DEFINE_float("utilisation", 0.5, "share of the peak that products are assumed to reach", 0.01, 1.0)
JSON = flags.DEFINE_string("json", "", "file to write the numbers to")
define_workdir_flag()  # not used: accepted, as all flags of `babistories` are
define_language_flags()


def main(argv: list[str]) -> None:
    run = run_from_flags()
    if len(run.model_names) != 1:
        raise UserError(f"--model={run.model}: a plan is of one model")
    name = run.model_names[0]
    text, loop = entry.from_flags(TextConfig), entry.from_flags(LoopConfig)
    optimizer = entry.from_flags(OptimizerConfig)
    config = model_config_from_flags(name, flags.FLAGS.vocab_size or DEFAULT_VOCAB_SIZE)
    retrieval = getattr(config, "retrieval", None)  # of models with attention or contextual memories
    if TOPOLOGY.value.startswith("h100") and retrieval == RetrievalForm.AUTO.value:
        config = dataclasses.replace(config, retrieval=RetrievalForm.BLOCKWISE.value)
        print("retrieval: blockwise, as cuDNN's kernel cannot be compiled where there is no GPU")
    model = build_model(name, dataclasses.asdict(config))
    task = Task(
        name=f"plan/{name}",
        init=init_function(model, text.context_length),
        loss=next_token_loss(model, text.z_loss),
        train_data=(),
        config={},
        tokens_per_step=text.batch_size * text.context_length,
    )
    shape = jax.ShapeDtypeStruct((text.batch_size, text.context_length), jnp.int32)
    attended = config.n_layer * config.n_embd * text.context_length // 2 if retrieval else 0
    batch = {"inputs": shape, "targets": shape}
    try:
        plan = make_plan(task, optimizer, loop.mesh, TOPOLOGY.value, batch, not config.weight_tying, attended)
    except TooLarge as error:
        raise UserError(f"{name} on {TOPOLOGY.value}: {error}; {remedies(error, config, optimizer)}") from None
    print(f"{name}, {plan.parameters:,} parameters, {text.batch_size} x {text.context_length} tokens a step")
    print(report(plan, TOPOLOGY.value, UTILISATION.value))
    if JSON.value:
        numbers = {"topology": TOPOLOGY.value, "model": name, **as_json(plan, UTILISATION.value)}
        staging.write_file(Path(JSON.value), (json.dumps(numbers, indent=2) + "\n").encode())


def remedies(error: TooLarge, config: Any, optimizer: OptimizerConfig) -> str:
    """What to change so that the step fits, the cheapest change first."""
    if error.state > 0.6 * error.hbm:
        return (
            f"parameters and optimizer alone are {error.state / GIB:.1f} GiB of that: split them over more chips "
            "(--mesh with more fsdp or tensor, or a larger --topology)"
        )
    ways = [] if config.remat == "full" else ["--remat=full"]
    ways += [f"--accumulate={2 * optimizer.accumulate}", "a smaller --batch_size", "more fsdp or sequence in --mesh"]
    return f"try {', then '.join(ways)}"


if __name__ == "__main__":
    entry.run(main)
