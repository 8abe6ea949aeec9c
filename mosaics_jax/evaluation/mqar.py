"""Loss and accuracy on multi-query associative recall, at the queries alone: nothing else is asked (data.mqar)."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.windows import Batch
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.ops import head_cross_entropy
from mosaics_jax.shapes import IGNORED, Array, Params
from mosaics_jax.training.mesh import put_batch


def at_queries(
    model: LanguageModel, params: Params, batch: Batch, queries: int, **how: Any
) -> tuple[Array, Array, Array]:
    """What the head reads at the ``queries`` of each row, Q, the head, and the targets: (B, Q, C), (V, C), (B, Q).

    Logits elsewhere, most of the positions times V, are never made. ``how``: further arguments of ``apply``.
    """
    hidden_BTC: Any = model.apply({"params": params}, batch["inputs"], method="hidden", **how)
    _, places_BQ = jax.lax.top_k((batch["targets"] != IGNORED).astype(jnp.int32), queries)
    hidden_BQC = jnp.take_along_axis(hidden_BTC, places_BQ[..., None], axis=1)
    head_VC = params["embedding" if model.config.weight_tying else "head"]
    return hidden_BQC, head_VC, jnp.take_along_axis(jnp.asarray(batch["targets"]), places_BQ, axis=1)


def query_loss(model: LanguageModel, params: Params, batch: Batch, key: Array, queries: int) -> Array:
    """Mean nats a query in training, with dropout from ``key``."""
    hidden_BQC, head_VC, targets_BQ = at_queries(model, params, batch, queries, train=True, rngs={"dropout": key})
    return head_cross_entropy(hidden_BQC, head_VC, targets_BQ, model.logit_scale)[0]


def evaluation_batches(data: Batch, batch_size: int) -> list[Batch]:
    """All of ``data`` once, this process's rows of it; the last batch is filled up with rows that ask nothing."""
    if batch_size % jax.process_count():
        raise UserError(f"a batch of {batch_size} does not divide among {jax.process_count()} processes")
    padding = ((0, -len(data["inputs"]) % batch_size), (0, 0))
    filled = {name: np.pad(array, padding, constant_values=IGNORED) for name, array in data.items()}
    filled["inputs"] = np.maximum(filled["inputs"], 0)
    rows = batch_size // jax.process_count()
    return [
        {name: array[start : start + rows] for name, array in filled.items()}
        for start in range(jax.process_index() * rows, len(filled["inputs"]), batch_size)
    ]


def query_scorer(model: LanguageModel, queries: int) -> Callable[[Params, Iterable[Batch]], dict[str, float]]:
    """A function of parameters and batches that gives {"accuracy": share of queries answered by the right value}.

    The answer is the greatest of all V outputs. Dropout is off. Rows without targets are padding.
    """

    @jax.jit
    def count(params: Params, batch: Batch) -> tuple[Array, Array]:
        hidden_BQC, head_VC, targets_BQ = at_queries(model, params, batch, queries)
        logits_BQV = jnp.einsum("bqc,vc->bqv", hidden_BQC, head_VC.astype(hidden_BQC.dtype))
        return jnp.sum(jnp.argmax(logits_BQV, axis=-1) == targets_BQ), jnp.sum(targets_BQ != IGNORED)

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        mesh = jax.sharding.get_mesh()
        counts = [count(params, put_batch(batch, mesh)) for batch in batches]
        return {"accuracy": sum(int(right) for right, _ in counts) / max(sum(int(asked) for _, asked in counts), 1)}

    return evaluate
