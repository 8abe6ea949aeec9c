"""The measure of disentanglement on maps made by hand."""

import numpy as np
import pytest

from mosaics_jax.evaluation.disentanglement import measure


def maps(*rows):
    """One map of units with one row each."""
    return np.array(rows, float)[:, None]


def test_a_permutation_is_disentangled():
    found = measure([maps([0, 2, 0], [1, 0, 0], [0, 0, 3]), maps([0, 5, 0], [1, 0, 0], [0, 0, 1])])
    assert found.disentangled
    assert found.unit_sources == (1, 0, 2)
    assert found.unit_shares == (1.0, 1.0, 1.0)


def test_shares_are_of_squared_moduli():
    found = measure([maps([3.0, 1.0])])
    assert found.unit_shares == pytest.approx([0.9])
    assert not found.disentangled
    assert measure([maps([3.0, 1.0])], threshold=0.9).disentangled


def test_maps_must_agree():
    found = measure([maps([1, 0], [0, 1]), maps([0, 1], [0, 1])])
    assert found.unit_sources == (-1, 1)
    assert not found.disentangled


def test_no_two_units_share_a_source():
    assert not measure([maps([1, 0], [1, 0])]).disentangled


def test_rows_of_a_unit_count_together():
    assert measure([np.array([[[1.0, 0.0], [2.0, 0.1]], [[0.0, 1.0], [0.0, 1.0]]])]).disentangled
    assert not measure([np.array([[[1.0, 0.0], [0.0, 1.0]]])]).disentangled


def test_a_unit_without_weight_has_no_source():
    found = measure([maps([0, 0], [0, 1])])
    assert found.unit_sources == (-1, 1)
    assert not found.disentangled
