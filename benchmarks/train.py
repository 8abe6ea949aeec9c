"""Speed and memory of a training step: the mosaic beside a GPT-2 of its size, and beside the same GPT-2 in PyTorch.

    python -m benchmarks.train --size=small [--peer=torch] [--out=train.json]
    python -m benchmarks.train --size=published

A step is forward, backward and AdamW on random tokens, all in float32 on CPU and bfloat16 elsewhere (`--dtype`).
`small`: 4 blocks, 256 wide, V 8192, batches of 16 x 256; `published`: 12 blocks, 768 wide, V 50304, 2 x 512 on CPU and
32 x 512 elsewhere. Each model has a process of its own, whose peak memory is reported; times are medians of 5 runs
after 2. Share: model FLOPs a second, over the rate of a lone 1024 x 768 x 3072 matmul of the same library in the same
process.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.common import REPEATS, SIZES, build, in_its_own_process, report, spread, timed
from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import REMAT_POLICIES, LanguageModel
from mosaics_jax.ops import STRICT
from mosaics_jax.ops.retrieval import quickest_form
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.training.mesh import make_mesh, put_batch
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import say
from mosaics_jax.training.state import Task, count_parameters, make_trainer

BATCHES = {("small", "cpu"): (16, 256), ("published", "cpu"): (2, 512)}
ELSEWHERE = {"small": (16, 256), "published": (32, 512)}
MATMUL = (1024, 768, 3072)

SIZE = flags.DEFINE_enum("size", "small", list(SIZES), "size of the models")
MODELS = flags.DEFINE_list("models", ["mosaic", "gpt2"], "which of our models are measured")
VARIANT = flags.DEFINE_enum("variant", "library", ["library", "nano"], "which of the authors' two mosaics")
PEER = flags.DEFINE_enum("peer", "", ["", "torch"], "what else is measured: a GPT-2 in PyTorch (pip install torch)")
DROPOUT = flags.DEFINE_float("dropout", 0.05, "of embeddings, weights of retrieval and attention, and outputs")
DTYPE = flags.DEFINE_string("dtype", "", "type of the products (empty: float32 on CPU, bfloat16 elsewhere)")
BATCH = flags.DEFINE_integer("batch_size", 0, "sequences (0: as above)")
LENGTH = flags.DEFINE_integer("context_length", 0, "positions of a sequence (0: as above)")
REMAT = flags.DEFINE_enum("remat", "none", ["none", *REMAT_POLICIES], "what backward of our scanned blocks recomputes")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and how it is trained; empty options get their values where the device is known."""

    model: str
    size: str
    variant: str
    dropout: float
    dtype: str
    batch: int
    time: int
    repeats: int
    remat: str = "none"

    def shape(self, device: str) -> tuple[int, int]:
        batch, time = BATCHES.get((self.size, device), ELSEWHERE[self.size])
        return self.batch or batch, self.time or time


def main(argv: list[str]) -> None:
    del argv
    if unknown := [name for name in MODELS.value if name not in ("mosaic", "gpt2")]:
        raise UserError(f"--models={unknown[0]}: choose from mosaic, gpt2")
    what = (SIZE.value, VARIANT.value, DROPOUT.value, DTYPE.value)
    how = (BATCH.value, LENGTH.value, REPEATS.value, REMAT.value)
    cases = [(ours, Case(name, *what, *how)) for name in MODELS.value]
    if PEER.value:
        cases.append((torch_gpt2, Case("gpt2 in torch", *what, *how)))
    rows = []
    for measure, case in cases:
        rows.append({"model": case.model, **in_its_own_process(measure, case)})
        say("  ".join(table(rows)[-1]))
    settings = {"size": SIZE.value, "dropout": DROPOUT.value, "remat": REMAT.value, "repeats": REPEATS.value}
    report(table(rows), {**settings, "rows": rows})


def ours(case: Case) -> dict[str, Any]:
    """The step that `training.loop` runs, of one of our models."""
    device = jax.devices()[0].platform
    dtype = case.dtype or ("float32" if device == "cpu" else "bfloat16")
    batch, time = case.shape(device)
    model = build(
        case.model,
        case.size,
        **dict.fromkeys(("dropout", "ic_dropout", "hd_dropout"), case.dropout),
        dtype=dtype,
        variant=case.variant,
        context_length=time,
        remat=case.remat,
        scan_layers=case.remat != "none",
    )
    config = model.config

    task = training_task(model, batch, time)
    mesh = make_mesh("data:-1")
    with jax.set_mesh(mesh):
        trainer = make_trainer(task, OptimizerConfig(), 1000, 0, mesh)
        state = trainer.init()
        tokens = np.random.default_rng(0).integers(config.vocab_size, size=(batch, time + 1), dtype=np.int32)
        data = put_batch({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}, mesh)

        def step() -> None:
            nonlocal state
            state, metrics = trainer.step(state, data)
            jax.block_until_ready((state, metrics))

        seconds = timed(step, case.repeats)
        params = count_parameters(state.params)
    factors = (jnp.ones(MATMUL[:2], dtype), jnp.ones(MATMUL[1:], dtype))
    multiply = jax.jit(jnp.matmul)
    peak = jax.local_devices()[0].memory_stats() or {}
    rate = matmul_rate(lambda: multiply(*factors).block_until_ready(), case.repeats)
    head = jax.ShapeDtypeStruct((batch, time, config.n_head, config.n_embd // config.n_head), dtype)
    measured = figures(case.size, params, batch, time, seconds, rate)
    if "peak_bytes_in_use" in peak:
        measured["device_peak_mib"] = round(peak["peak_bytes_in_use"] / 2**20)
    return {**measured, "dtype": dtype, "retrieval": quickest_form(head, case.dropout, STRICT).value}


def training_task(model: LanguageModel, batch: int, time: int) -> Task:
    """Next-token prediction without data: the caller of the step brings batches of ``inputs`` and ``targets``."""
    return Task(
        name="benchmark",
        init=init_function(model, time),
        loss=next_token_loss(model),
        train_data=[],
        config={},
        tokens_per_step=batch * time,
    )


def torch_gpt2(case: Case) -> dict[str, Any]:
    """A step of the same GPT-2 written with PyTorch's own layers and its fused attention."""
    try:
        import torch

        from benchmarks.torch_gpt2 import GPT2
    except ImportError:
        raise SystemExit("error: --peer=torch needs PyTorch: pip install torch") from None

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, time = case.shape(device)
    size = {name: value for name, value in SIZES[case.size].items() if name != "pmem_size"}
    model = GPT2(**size, context_length=time, dropout=case.dropout).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(size["vocab_size"], (batch, time + 1), device=device)
    dtype = case.dtype or ("float32" if device == "cpu" else "bfloat16")

    def step() -> None:
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = timed(step, case.repeats)
    factors = [torch.ones(shape, dtype=getattr(torch, dtype), device=device) for shape in (MATMUL[:2], MATMUL[1:])]

    def multiply() -> None:
        torch.mm(*factors)
        if device == "cuda":
            torch.cuda.synchronize()

    rate = matmul_rate(multiply, case.repeats)
    measured = figures(case.size, sum(p.numel() for p in model.parameters()), batch, time, seconds, rate)
    if device == "cuda":
        measured["device_peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return {**measured, "dtype": dtype, "torch": torch.__version__, "threads": torch.get_num_threads()}


def matmul_rate(multiply: Any, repeats: int) -> float:
    """FLOPs a second of the lone matmul, from the median over ten times as many runs."""
    return 2 * float(np.prod(MATMUL)) / spread(timed(multiply, 10 * repeats))["median_s"]


def figures(size: str, params: int, batch: int, time: int, seconds: list[float], rate: float) -> dict[str, Any]:
    """The figures of a model. Its FLOPs: 6 for each parameter and token, 6 T C a token and layer for retrieval."""
    width, layers = SIZES[size]["n_embd"], SIZES[size]["n_layer"]
    flops = 6 * batch * time * (params + layers * time * width)
    timing = spread(seconds)
    return {
        "params": params,
        "batch": [batch, time],
        **timing,
        "tokens_per_s": batch * time / timing["median_s"],
        "model_flops": flops,
        "matmul_flops_per_s": rate,
        "share": flops / timing["median_s"] / rate,
    }


def table(rows: list[dict[str, Any]]) -> Sequence[Sequence[str]]:
    """A line for each model, under a heading."""
    heading = ("model", "parameters", "batch", "s/step", "least .. most", "tokens/s", "peak MiB", "GFLOP/s", "share")
    lines = [heading]
    for row in rows:
        lines.append(
            (
                row["model"],
                f"{row['params']:,}",
                "{} x {}".format(*row["batch"]),
                f"{row['median_s']:.3f}",
                f"{row['least_s']:.3f} .. {row['most_s']:.3f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row.get('device_peak_mib', row['peak_mib']):,}",
                f"{row['matmul_flops_per_s'] / 1e9:,.0f}",
                f"{row['share']:.2f}",
            )
        )
    return lines


if __name__ == "__main__":
    entry.run(main)
