"""Loss and accuracy on multi-query associative recall (`data.mqar`), computed at the queries only.

Shapes here: Q queries of a sequence.
"""

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
    model: LanguageModel, params: Params, batch: Batch, queries: int, **apply_arguments: Any
) -> tuple[Array, Array, Array]:
    """The hidden states at the ``queries`` queries of each row (B, Q, C), the head (V, C), and the targets (B, Q).

    Logits of other positions, which are most of the array (B, T, V), are never computed. ``apply_arguments`` are passed
    to ``model.apply``.
    """
    hidden_BTC: Any = model.apply({"params": params}, batch["inputs"], method="hidden", **apply_arguments)
    _, position_BQ = jax.lax.top_k((batch["targets"] != IGNORED).astype(jnp.int32), queries)
    hidden_BQC = jnp.take_along_axis(hidden_BTC, position_BQ[..., None], axis=1)
    head_VC = params["embedding" if model.config.weight_tying else "head"]
    return hidden_BQC, head_VC, jnp.take_along_axis(jnp.asarray(batch["targets"]), position_BQ, axis=1)


def query_loss(model: LanguageModel, params: Params, batch: Batch, key: Array, queries: int) -> Array:
    """The mean loss of the queries in nats, with dropout from ``key``."""
    hidden_BQC, head_VC, targets_BQ = at_queries(model, params, batch, queries, train=True, rngs={"dropout": key})
    return head_cross_entropy(hidden_BQC, head_VC, targets_BQ, model.logit_scale)[0]


def evaluation_batches(data: Batch, batch_size: int) -> list[Batch]:
    """This process's rows of all batches of ``data``; rows without targets pad the last batch.

    Raises UserError if the number of processes does not divide ``batch_size``.
    """
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
    """Makes an evaluator: a function of parameters and batches that returns {"accuracy": share of right answers}.

    An answer is right if the target has the largest of all V logits. Dropout is off. Rows without targets are padding.
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
