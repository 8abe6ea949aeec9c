"""The measure of disentanglement on maps written by hand."""

import numpy as np
import pytest

from mosaics_jax.evaluation.disentanglement import measure_disentanglement


def maps(*rows):
    """One map, whose units have one row each."""
    return np.array(rows, float)[:, None]


def test_a_permutation_is_disentangled():
    result = measure_disentanglement([maps([0, 2, 0], [1, 0, 0], [0, 0, 3]), maps([0, 5, 0], [1, 0, 0], [0, 0, 1])])
    assert result.disentangled
    assert result.unit_sources == (1, 0, 2)
    assert result.unit_shares == (1.0, 1.0, 1.0)


def test_shares_are_of_squared_moduli():
    result = measure_disentanglement([maps([3.0, 1.0])])
    assert result.unit_shares == pytest.approx([0.9])
    assert not result.disentangled
    assert measure_disentanglement([maps([3.0, 1.0])], threshold=0.9).disentangled


def test_maps_must_agree():
    result = measure_disentanglement([maps([1, 0], [0, 1]), maps([0, 1], [0, 1])])
    assert result.unit_sources == (-1, 1)
    assert not result.disentangled


def test_no_two_units_share_a_source():
    assert not measure_disentanglement([maps([1, 0], [1, 0])]).disentangled


def test_rows_of_a_unit_count_together():
    assert measure_disentanglement([np.array([[[1.0, 0.0], [2.0, 0.1]], [[0.0, 1.0], [0.0, 1.0]]])]).disentangled
    assert not measure_disentanglement([np.array([[[1.0, 0.0], [0.0, 1.0]]])]).disentangled


def test_a_unit_without_weight_has_no_source():
    result = measure_disentanglement([maps([0, 0], [0, 1])])
    assert result.unit_sources == (-1, 1)
    assert not result.disentangled
