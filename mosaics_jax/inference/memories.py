"""The memories of a generation: preparing a network for decoding, feeding prompts, growing memories, carrying them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mosaics_jax.errors import UserError
from mosaics_jax.models import LanguageModel, unstack_layers
from mosaics_jax.nn.memory import Memory, holds_pairs
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.mesh import make_mesh

# Prompts are fed in chunks. Each size is compiled, so there are two: the first while it fits, then the second.
CHUNKS = (128, 32)
LEAST_CAPACITY = 256  # positions


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """The mesh of this process's first device. Generation runs on it, also inside a training loop on another mesh."""
    with jax.set_mesh(_mesh_of_one()):
        yield


@functools.cache
def _mesh_of_one() -> Mesh:
    return make_mesh("data:1", jax.local_devices()[:1])


def decodable(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
    """The network and its parameters as generation needs them: layers unscanned, parameters whole, on one device.

    Matrices are cast to the type that the network computes in. ``params`` may be boxed and may be sharded over devices
    and processes; if over processes, all of them must call this function. A network and parameters that are in this
    form already are returned without a copy.
    """
    params = nn.meta.unbox(params)
    if model.config.scan_layers:
        model, params = type(model)(dataclasses.replace(model.config, scan_layers=False)), unstack_layers(params)
    params = jax.tree.map(_gathered, params)
    with one_device():
        # Placed on this mesh. On a bare device, a loop would use the training mesh around it.
        params = jax.device_put(params, NamedSharding(_mesh_of_one(), PartitionSpec()))
        return model, _cast_matrices(params, model.config.dtype)


def _gathered(leaf: Array) -> Array:
    """The whole array on this process's devices, if it is sharded over several processes."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        # Shardings are typed as their base, which has no mesh.
        return _replicate(leaf.sharding.mesh)(leaf).addressable_data(0)  # type: ignore[attr-defined]
    return leaf


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _cast_matrices(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def check_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raises UserError for a prompt that is empty, has tokens outside the vocabulary, or exceeds learned positions."""
    for number, prompt in enumerate(prompts, start=1):
        name = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        if not len(prompt):
            raise UserError(f"{name} is empty: give at least one token to go on from")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise UserError(f"{name} has a token id outside 0..{vocab_size - 1}: it is of another tokenizer")
        if model.max_positions is not None and len(prompt) > model.max_positions:
            raise UserError(
                f"{name} has {len(prompt)} tokens, this model has learned {model.max_positions} positions: shorten it"
            )


def longest_continuation(model: LanguageModel, prompt_length: int, max_tokens: int) -> int:
    """How many tokens can follow a prompt: ``max_tokens``, or fewer if the model's learned positions end before."""
    if model.max_positions is None:
        return max_tokens
    return min(max_tokens, model.max_positions - prompt_length + 1)


def feed_prompts(model: LanguageModel, params: Params, prompts: Sequence[Sequence[int]]) -> tuple[Memory, Array]:
    """Feeds prompts of any lengths, in chunks. Returns the memory after them and the next tokens' logits (B, V)."""
    length_B = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(length_B.max())
    tokens_BT = np.zeros((len(prompts), longest + CHUNKS[-1]), np.int32)
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[: len(prompt)] = prompt
    memory, logits_BV = _empty(model, len(prompts), capacity_for(longest + 1), params)
    start = 0
    while start < longest:
        size = next((size for size in CHUNKS if size <= longest - start), CHUNKS[-1])
        valid_B = np.clip(length_B - start, 0, size)
        memory, logits_BV = _feed(model, params, memory, logits_BV, tokens_BT[:, start : start + size], valid_B)
        start += size
    return memory, logits_BV


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(model: LanguageModel, batch: int, capacity: int, params: Params) -> tuple[Memory, Array]:
    # Linen's apply is untyped.
    memory: Memory = model.apply({"params": params}, batch, capacity, method="empty_memory")  # type: ignore[assignment]
    return memory, jnp.zeros((batch, model.config.vocab_size), jnp.promote_types(model.config.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _feed(
    model: LanguageModel, params: Params, memory: Memory, logits_BV: Array, tokens_BT: Array, valid_B: Array
) -> tuple[Memory, Array]:
    new_BV, memory = extend(model, params, tokens_BT, memory, valid_B)
    return memory, jnp.where(valid_B[:, None] > 0, new_BV, logits_BV)


def extend(
    model: LanguageModel, params: Params, tokens_BT: Array, memory: Memory, valid_B: Array
) -> tuple[Array, Memory]:
    """`LanguageModel.extend_last`: the logits (B, V) after the last valid token of each row's chunk, and the memory."""
    # Linen's apply is untyped.
    return model.apply({"params": params}, tokens_BT, memory, valid_B, method="extend_last")  # type: ignore[return-value]


def capacity_for(positions: int) -> int:
    """A capacity for so many positions: LEAST_CAPACITY times a power of 2, so that few sizes are compiled."""
    capacity = LEAST_CAPACITY
    while capacity < positions:
        capacity *= 2
    return capacity


def capacity_of(memory: Memory) -> int:
    """How many positions a memory has room for."""
    return memory.blocks[0][0].keys_BHND.shape[2]


@functools.partial(jax.jit, static_argnums=1)
def grow(memory: Memory, capacity: int) -> Memory:
    """The memory, padded to room for ``capacity`` positions."""

    def pad(path: Any, leaf: Array) -> Array:
        if not holds_pairs(path):
            return leaf
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, capacity - leaf.shape[2]), (0, 0)))

    return jax.tree.map_with_path(pad, memory)


def fold_batch(memory: Memory) -> Memory:
    """The form in which loops carry a memory: with one row (B = 1), stores have no batch axis.

    With a batch axis of length 1, XLA on CPU fuses the update of a store with a reshape and copies the whole store.
    """
    return jax.tree.map_with_path(lambda path, a: a[0] if holds_pairs(path) and len(a) == 1 else a, memory)


def unfold_batch(memory: Memory) -> Memory:
    """The inverse of `fold_batch`."""
    return jax.tree.map_with_path(lambda path, a: a[None] if holds_pairs(path) and a.ndim == 3 else a, memory)
