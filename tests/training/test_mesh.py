"""Mesh descriptions, and the table from logical to mesh axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from mosaics_jax.errors import UserError
from mosaics_jax.sharding import RULES
from mosaics_jax.training.mesh import make_mesh, parse_mesh, put_batch, shardings_of


@pytest.mark.parametrize(
    ("text", "devices", "sizes"),
    [
        ("data:-1", 8, (8, 1, 1, 1)),
        ("data:2,fsdp:2,tensor:2", 8, (2, 2, 2, 1)),
        ("tensor:4, fsdp:-1", 8, (1, 2, 4, 1)),
        ("sequence:-1,data:2", 2, (2, 1, 1, 1)),
        ("data:1", 1, (1, 1, 1, 1)),
    ],
)
def test_parse_mesh(text, devices, sizes):
    assert parse_mesh(text, devices) == dict(zip(("data", "fsdp", "tensor", "sequence"), sizes, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:2", "'model' is not one of data, fsdp, tensor, sequence"),
        ("", "'' is not one of"),
        ("data", "'data' is not NAME:SIZE"),
        ("data:two", "'data:two' is not NAME:SIZE"),
        ("data:0", "size of data must be at least 1"),
        ("data:-2", "size of data must be at least 1"),
        ("data:2,data:4", "data is given twice"),
        ("data:-1,fsdp:-1", "only one axis may be -1"),
        ("data:3", "does not fit 8 devices"),
        ("data:3,fsdp:-1", "does not fit 8 devices"),
        ("data:16", "does not fit 8 devices"),
    ],
)
def test_parse_mesh_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        parse_mesh(text, 8)


def test_make_mesh_has_every_axis():
    assert dict(make_mesh("data:-1").shape) == {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}


class Chip:
    """A device as a mesh sees it, in one of several TPU slices."""

    platform = device_kind = "fake"

    def __init__(self, number, slices, processes=1):
        self.id, self.slice_index, self.process_index = number, number * slices // 16, number * processes // 16


def chips(slices, processes=1):
    return [Chip(number, slices, processes) for number in range(16)]


@pytest.mark.parametrize(("text", "slices"), [("data:4,fsdp:4", 2), ("data:4,fsdp:2,tensor:2", 4), ("data:-1", 2)])
def test_data_alone_goes_from_slice_to_slice(text, slices):
    mesh = make_mesh(text, chips(slices))
    assert dict(mesh.shape) == parse_mesh(text, 16)
    within = mesh.devices.reshape(slices, -1)
    assert [{chip.slice_index for chip in part} for part in within] == [{i} for i in range(slices)]
    assert {chip.id for chip in mesh.devices.flat} == set(range(16))


def test_slices_that_data_does_not_divide_into():
    with pytest.raises(UserError, match=r"data must be a multiple of the 4 slices"):
        make_mesh("data:2,fsdp:8", chips(4))


def test_processes_that_the_batch_does_not_divide_into():
    with pytest.raises(UserError, match=r"data x fsdp must be a multiple of the 4 processes"):
        make_mesh("data:2,sequence:8", chips(1, processes=4))


def test_rules():
    def axes(*names):
        return nn.logical_to_mesh_axes(names, RULES)

    assert axes("vocab", "embed") == PartitionSpec("tensor", "fsdp")
    assert axes("layers", "embed", "heads") == PartitionSpec(None, "fsdp", "tensor")
    assert axes("batch", "time", "activation_heads") == PartitionSpec(("data", "fsdp"), "sequence", "tensor")
    assert axes("batch", "time", "activation_vocab") == PartitionSpec(("data", "fsdp"), "sequence", "tensor")
    assert axes("banks", "heads", "slots", "head_dim") == PartitionSpec(None, "tensor", "fsdp", None)


def boxed(shape, names):
    return {"layer": {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names=names)}}


def test_a_mesh_that_does_not_divide_a_parameter():
    mesh = AbstractMesh((1, 1, 2, 1), ("data", "fsdp", "tensor", "sequence"))
    with pytest.raises(UserError, match="tensor:2 does not divide the vocab axis of layer/kernel, 97"):
        shardings_of(boxed((97, 4), ("vocab", "embed")), mesh)


@pytest.mark.parametrize("names", [("vocabulary", "embed"), ("vocab",)])
def test_wrong_axis_names(names):
    with pytest.raises(ValueError, match="layer/kernel"):
        shardings_of(boxed((4, 4), names), make_mesh("data:-1"))


def test_put_batch_refuses_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"a batch of 6 does not divide into 4 equal parts .*accumulate = 4"):
        put_batch({"x": np.zeros((6, 2))}, make_mesh("data:-1"), micro_batches=4)
