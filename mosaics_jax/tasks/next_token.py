"""Next-token prediction, which language models and RegBench share: initial parameters and training loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mosaics_jax.data.windows import Batch
from mosaics_jax.errors import UserError
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.shapes import Array, Params

Init = Callable[[Array], Params]
Loss = Callable[[Params, Batch, Array], tuple[Array, dict[str, Array]]]


def init_function(model: LanguageModel, length: int) -> Init:
    """``init(key) -> params``, boxed with logical axis names: the parameters after a blank sequence of ``length``."""

    def init(key: Array) -> Params:
        return model.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    return init


def next_token_loss(model: LanguageModel, z_loss: float = 0.0) -> Loss:
    """``loss(params, batch, key)``: mean nats over all targets that are not IGNORED, with dropout from ``key``.

    A batch holds ``inputs`` and ``targets``, int32 (B, T). ``z_loss`` weighs log(Z)^2, Z being the softmax's sum. The
    loss raises UserError while it is traced if a mesh that shards time does not divide T.
    """

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        length = batch["inputs"].shape[1]
        shards = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
        if length % shards:
            raise UserError(
                f"context_length={length} does not divide by mesh sequence:{shards}: choose a multiple of {shards}"
            )
        mean, _ = model.apply(
            {"params": params},
            batch["inputs"],
            batch["targets"],
            train=True,
            z_loss=z_loss,
            rngs={"dropout": key},
            method="loss",
        )
        return mean, {}

    return loss
