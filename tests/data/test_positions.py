"""The position in endless training data is one number, from which any number of processes resumes."""

import jax
import numpy as np
import pytest

from mosaics_jax.data import moons, mqar, regbench, windows
from mosaics_jax.data.automata import AutomataConfig

BATCH = 6


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Functions of (process_index, process_count), by name."""
    small = regbench.RegBenchConfig(num_train=20, num_validation=1, num_test=1)
    problems = regbench.open_regbench(small, AutomataConfig(), tmp_path_factory.mktemp("cache"), progress=False).train
    sequences = mqar.sequences(mqar.MQARConfig(vocab_size=64, context_length=16, num_pairs=2), seed=0, count=20)
    signals = moons.MoonsConfig(context_length=30, batch_size=BATCH)
    return {
        "windows": lambda *which: windows.random_windows(np.arange(1000), 8, BATCH, 0, *which),
        "moons": lambda *which: moons.windows(signals, 0, *which),
        "regbench": lambda *which: regbench.training_batches(problems, regbench.BatchConfig(BATCH), 0, *which),
        "mqar": lambda *which: mqar.training_batches(sequences, BATCH, 0, *which),
    }


@pytest.mark.parametrize("name", ["windows", "moons", "regbench", "mqar"])
def test_two_processes_resume_after_one_and_three_after_two(name, datasets):
    whole = iter(datasets[name](0, 1))
    for _ in range(5):  # into the second epoch of 20
        next(whole)
    state = whole.get_state()
    assert state == {"next_index": 5}
    for processes in (2, 3):
        parts = [iter(datasets[name](process, processes)) for process in range(processes)]
        for part in parts:
            part.set_state(state)
        batch = jax.tree.map(lambda *rows: np.concatenate(rows), *map(next, parts))
        jax.tree.map(np.testing.assert_array_equal, batch, next(whole))
        state = whole.get_state()
        assert [part.get_state() for part in parts] == [state] * processes
