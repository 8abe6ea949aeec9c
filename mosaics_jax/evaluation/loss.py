"""Loss of a language model over a whole text."""

import math
from collections.abc import Callable, Iterable

import jax

from mosaics_jax.data.windows import Batch
from mosaics_jax.models import LanguageModel
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.mesh import put_batch


def loss_evaluator(model: LanguageModel) -> Callable[[Params, Iterable[Batch]], dict[str, float]]:
    """``evaluate(params, batches) -> {"loss": mean nats a token, "perplexity": its exponential}``, without dropout.

    Each target that is not IGNORED weighs the same, whatever batch holds it. The evaluator runs under the mesh that is
    set, and compiles once for each shape of a batch.
    """

    @jax.jit
    def batch_loss(params: Params, batch: Batch) -> tuple[Array, Array]:
        return model.apply(  # type: ignore[return-value]  # apply is untyped
            {"params": params}, batch["inputs"], batch["targets"], method="loss"
        )

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        mesh = jax.sharding.get_mesh()
        losses = [batch_loss(params, put_batch(batch, mesh)) for batch in batches]
        total = sum(float(mean) * int(count) for mean, count in losses)
        loss = total / max(sum(int(count) for _, count in losses), 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

    return evaluate
