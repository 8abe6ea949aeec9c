"""The memories of a generation: a network made ready for them, filled with prompts, grown, kept in place in loops."""

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

# Prompts are fed in chunks of few sizes, since each size is compiled: the first as long as it fits, then the second.
CHUNKS = (128, 32)
LEAST_CAPACITY = 256


@contextlib.contextmanager
def one_device() -> Iterator[None]:
    """Generation runs on this process's first device, also when the program around it, a training loop, has a mesh."""
    with jax.set_mesh(_mesh_of_one()):
        yield


@functools.cache
def _mesh_of_one() -> Mesh:
    return make_mesh("data:1", jax.local_devices()[:1])


def decodable(model: LanguageModel, params: Params) -> tuple[LanguageModel, Params]:
    """The same network in the form that generation runs: layers unscanned, parameters whole and on one device.

    Matrices are cast to the type of computation, which they are used in anyway. ``params`` may be spread over devices
    and processes; then every process must call this. What is already in this form comes back as it is.
    """
    params = nn.meta.unbox(params)
    if model.config.scan_layers:
        model, params = type(model)(dataclasses.replace(model.config, scan_layers=False)), unstack_layers(params)
    params = jax.tree.map(_addressable, params)
    with one_device():
        # Arrays remember a mesh, which loops over them look at: a device alone would leave them the one around.
        params = jax.device_put(params, NamedSharding(_mesh_of_one(), PartitionSpec()))
        return model, _cast_matrices(params, model.config.dtype)


def _addressable(leaf: Array) -> Array:
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
    """Raises UserError on a prompt without tokens, with unknown ones, or longer than the positions that are learned."""
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
    """At most how many tokens can follow a prompt: ``max_tokens``, or what learned positions leave room for."""
    if model.max_positions is None:
        return max_tokens
    return min(max_tokens, model.max_positions - prompt_length + 1)


def remember(model: LanguageModel, params: Params, prompts: Sequence[Sequence[int]]) -> tuple[Memory, Array]:
    """Feeds prompts of any lengths, in chunks: the memory after them, and the logits (B, V) of each next token."""
    length_B = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(length_B.max())
    tokens_BT = np.zeros((len(prompts), longest + CHUNKS[-1]), np.int32)
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[: len(prompt)] = prompt
    memory, logits_BV = _nothing(model, len(prompts), capacity_for(longest + 1), params)
    start = 0
    while start < longest:
        size = next((size for size in CHUNKS if size <= longest - start), CHUNKS[-1])
        valid_B = np.clip(length_B - start, 0, size)
        memory, logits_BV = _feed(model, params, memory, logits_BV, tokens_BT[:, start : start + size], valid_B)
        start += size
    return memory, logits_BV


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nothing(model: LanguageModel, batch: int, capacity: int, params: Params) -> tuple[Memory, Array]:
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
    """`LanguageModel.extend_last`: the logits (B, V) after the last real token of each row's chunk, and the memory."""
    # Linen's apply is untyped.
    return model.apply({"params": params}, tokens_BT, memory, valid_B, method="extend_last")  # type: ignore[return-value]


def capacity_for(positions: int) -> int:
    """The capacity that holds so many positions: doubled from the least, so that few sizes are ever compiled."""
    capacity = LEAST_CAPACITY
    while capacity < positions:
        capacity *= 2
    return capacity


def capacity_of(memory: Memory) -> int:
    """Positions that a memory has room for."""
    return memory.blocks[0][0].keys_BHND.shape[2]


@functools.partial(jax.jit, static_argnums=1)
def grow(memory: Memory, capacity: int) -> Memory:
    """The same memory with room for ``capacity`` positions."""

    def pad(path: Any, leaf: Array) -> Array:
        if not holds_pairs(path):
            return leaf
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, capacity - leaf.shape[2]), (0, 0)))

    return jax.tree.map_with_path(pad, memory)


def fold_batch(memory: Memory) -> Memory:
    """A memory of one row as loops should carry it: stores without their batch axis. Any other as it is.

    With an axis of length 1 XLA on CPU merges the update of a store with a reshape, and copies the whole store.
    """
    return jax.tree.map_with_path(lambda path, a: a[0] if holds_pairs(path) and len(a) == 1 else a, memory)


def unfold_batch(memory: Memory) -> Memory:
    """The inverse of `fold_batch`."""
    return jax.tree.map_with_path(lambda path, a: a[None] if holds_pairs(path) and a.ndim == 3 else a, memory)
