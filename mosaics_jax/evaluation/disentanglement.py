"""Predictive disentanglement as a measured quantity (v1 section 4)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.95


@dataclasses.dataclass(frozen=True)
class Disentanglement:
    """The source that each memory unit attends to; `measure_disentanglement` defines source, share and disentangled.

    unit_sources  for each unit, the source with the largest share in all maps, or -1 where its maps disagree
    unit_shares   for each unit, the least share of its source in any map; 0 where its maps disagree
    """

    unit_sources: tuple[int, ...]
    unit_shares: tuple[float, ...]
    disentangled: bool


def measure_disentanglement(maps: Sequence[np.ndarray], threshold: float = THRESHOLD) -> Disentanglement:
    """Measures whether training has split a prediction task into parts: one source of the signal per memory unit.

    ``maps`` holds one array (units, rows of a unit, sources) for each linear map that leads into or out of the memory
    units: the moduli of its weights. For three moons the maps are W_phi, W_psi and the transposed W_z, and the sources
    are the moons; for other networks a source is whatever an input consists of.

    The *share* of a source in a map of a unit is the sum of its squared moduli, divided by that of all sources. A
    network is disentangled when each unit has a share of at least ``threshold`` on one source, the same source in all
    of its maps, and no two units have the same source. A unit without any weight has no source.
    """
    power = np.stack([np.sum(np.square(m, dtype=np.float64), axis=1) for m in maps])  # (maps, units, sources)
    total = power.sum(axis=-1, keepdims=True)
    shares = np.divide(power, total, out=np.zeros_like(power), where=total > 0)
    largest = shares.argmax(axis=-1)
    agree = (largest == largest[0]).all(axis=0) & (total > 0).all(axis=(0, 2))
    sources = np.where(agree, largest[0], -1)
    least = np.where(agree, shares.max(axis=-1).min(axis=0), 0.0)
    disentangled = bool((least >= threshold).all() and len(set(sources.tolist())) == len(sources))
    return Disentanglement(tuple(sources.tolist()), tuple(least.tolist()), disentangled)
