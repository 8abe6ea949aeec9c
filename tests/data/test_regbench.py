"""RegBench's splits, their cache, and batches of them."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mosaics_jax.data import regbench
from mosaics_jax.data.automata import PAD, AutomataConfig, canonical
from mosaics_jax.data.regbench import (
    BatchConfig,
    Problems,
    RegBenchConfig,
    batches_per_epoch,
    evaluation_batches,
    open_regbench,
    training_batches,
)
from mosaics_jax.errors import UserError
from mosaics_jax.shapes import IGNORED

AUTOMATA = AutomataConfig()
SMALL = RegBenchConfig(num_train=70, num_validation=12, num_test=9, data_seed=3)
FIELDS = [field.name for field in dataclasses.fields(Problems)]


def digest(benchmark):
    """A digest of all arrays that the splits are views of."""
    content = hashlib.sha256()
    for field in FIELDS[:2]:
        content.update(getattr(benchmark.train, field).tobytes())
    for split in (benchmark.validation, benchmark.test, benchmark.train):
        content.update(split.offsets.astype("<i8").tobytes() + split.transitions.tobytes())
    return content.hexdigest()


def automata_of(problems):
    """The canonical automata of the transition tables of the problems."""
    automata = []
    for table in problems.transitions:
        edges = [{token: int(row[token]) for token in np.flatnonzero(row >= 0).tolist()} for row in table]
        automata.append(canonical([out for out in edges if out]))
    return automata


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def benchmark(cache_dir):
    return open_regbench(SMALL, AUTOMATA, cache_dir, progress=False)


def test_splits_share_no_automaton(benchmark):
    splits = benchmark.train, benchmark.validation, benchmark.test
    assert [len(split) for split in splits] == [70, 12, 9]
    automata = [automaton for split in splits for automaton in automata_of(split)]
    assert len(set(automata)) == 91


def test_splits_share_no_automaton_where_few_can_be_drawn(tmp_path):
    automata = dataclasses.replace(AUTOMATA, min_states=2, max_states=3, min_symbols=1, max_symbols=2, max_edges=1)
    config = RegBenchConfig(num_train=100, num_validation=50, num_test=50)
    benchmark = open_regbench(config, automata, tmp_path)
    splits = (benchmark.train, benchmark.validation, benchmark.test)
    assert len({automaton for split in splits for automaton in automata_of(split)}) == 200
    # The first problem of an automaton is kept when the automaton is drawn again: sets of all sizes begin alike.
    smaller = open_regbench(dataclasses.replace(config, num_train=20), automata, tmp_path)
    for index in range(20):
        np.testing.assert_array_equal(smaller.train[index].inputs, benchmark.train[index].inputs)


def test_a_small_training_set_begins_a_larger_one(benchmark, tmp_path):
    larger = open_regbench(dataclasses.replace(SMALL, num_train=90), AUTOMATA, tmp_path, progress=False)
    pairs = [(benchmark.train, larger.train.part(0, 70))]
    pairs += [(benchmark.validation, larger.validation), (benchmark.test, larger.test)]
    for smaller, other in pairs:
        assert len(smaller) == len(other)
        for index in range(len(smaller)):
            for field in ("inputs", "targets", "distributions"):
                np.testing.assert_array_equal(getattr(smaller[index], field), getattr(other[index], field))


def test_seeds(benchmark, tmp_path):
    other = open_regbench(dataclasses.replace(SMALL, data_seed=4), AUTOMATA, tmp_path, progress=False)
    assert not set(automata_of(other.test)) & set(automata_of(benchmark.test))
    # A change of the problems of a seed needs a new VERSION, or old and new caches would have one name.
    assert digest(benchmark) == "f560cf9a6ec4430ac66a9b029090b4354678eba078a4f4656d0efaebb566108f"


def test_workers_do_not_change_the_result(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(regbench, "BLOCK", 10)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert digest(open_regbench(SMALL, AUTOMATA, tmp_path, workers=2, progress=False)) == digest(benchmark)


def test_hash_order_does_not_change_the_result(benchmark, tmp_path, monkeypatch):
    code = (
        "import sys; from mosaics_jax.data.regbench import *; from mosaics_jax.data.automata import AutomataConfig;"
        f"open_regbench({SMALL!r}, AutomataConfig(), sys.argv[1], progress=False)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment)
    monkeypatch.setattr(regbench, "_generate", None)  # read, not made again
    assert digest(open_regbench(SMALL, AUTOMATA, tmp_path)) == digest(benchmark)


def test_cache(benchmark, cache_dir, tmp_path, monkeypatch):
    generated = []
    original = regbench._generate

    def counted(*arguments):
        generated.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(regbench, "_generate", counted)
    first = open_regbench(SMALL, AUTOMATA, tmp_path, progress=False)
    assert digest(open_regbench(SMALL, AUTOMATA, tmp_path, progress=False)) == digest(first)
    assert len(generated) == 1
    (directory,) = tmp_path.iterdir()
    assert sorted(path.name for path in directory.iterdir()) == sorted(["meta.json", *(f"{f}.npy" for f in FIELDS)])

    # Another config or version has another name; both caches are kept.
    open_regbench(SMALL, dataclasses.replace(AUTOMATA, max_words=12), tmp_path, progress=False)
    assert (len(generated), len(list(tmp_path.iterdir()))) == (2, 2)
    with monkeypatch.context() as patch:
        patch.setattr(regbench, "VERSION", 0)
        open_regbench(SMALL, AUTOMATA, tmp_path, progress=False)
    assert (len(generated), len(list(tmp_path.iterdir()))) == (3, 3)

    # A cache that is damaged, or whose content does not belong to its name, is made again.
    meta = json.loads((directory / "meta.json").read_text())
    damages = [
        lambda: (directory / "tokens.npy").write_bytes((directory / "tokens.npy").read_bytes()[:-1] + b"\x00"),
        lambda: (directory / "offsets.npy").unlink(),
        lambda: (directory / "meta.json").write_text("{"),
        lambda: (directory / "meta.json").write_text("[]"),
        lambda: (directory / "meta.json").write_text(json.dumps({**meta, "version": 99})),
    ]
    for number, damage in enumerate(damages, start=4):
        damage()
        assert digest(open_regbench(SMALL, AUTOMATA, tmp_path, progress=False)) == digest(first)
        assert len(generated) == number
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(regbench.staging, "write_file", full)
    with pytest.raises(UserError, match="cannot be written") as caught:
        open_regbench(SMALL, AUTOMATA, tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_few_different_automata(tmp_path):
    automata = dataclasses.replace(
        AUTOMATA, min_states=2, max_states=2, min_symbols=1, max_symbols=1, max_edges=1, max_word_length=1
    )
    with pytest.raises(UserError, match="910 draws gave 18: ask for fewer") as caught:
        open_regbench(SMALL, automata, tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def epochs(problems, config, seed, count, *processes, **row_multiple):
    batches = iter(training_batches(problems, config, seed, *processes, **row_multiple))
    return [[next(batches) for _ in range(batches_per_epoch(problems, config))] for _ in range(count)]


def rows_of(batches):
    """The tokens of all rows that hold a problem, without padding."""
    return [tuple(row[row != PAD].tolist()) for batch in batches for row in batch["inputs"] if (row != PAD).any()]


@pytest.mark.parametrize("sort_batches", [1, 2, 8])
def test_each_epoch_holds_every_problem_once(benchmark, sort_batches):
    config = BatchConfig(batch_size=16, sort_batches=sort_batches)
    expected = sorted(tuple(benchmark.train[i].inputs.tolist()) for i in range(70))
    three_epochs = epochs(benchmark.train, config, 0, 3)
    orders = [rows_of(epoch) for epoch in three_epochs]
    assert all(sorted(order) == expected for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert all(len(epoch) == 5 for epoch in three_epochs)
    assert all(batch["inputs"].shape[0] == 16 for epoch in three_epochs for batch in epoch)
    # The incomplete batch holds other problems in every epoch.
    partial = [frozenset(rows_of([b])) for epoch in three_epochs for b in epoch if len(rows_of([b])) == 6]
    assert len(set(partial)) == 3


def test_padding_is_masked_and_the_rest_is_not(benchmark):
    targets = {tuple(p.inputs.tolist()): p.targets for p in map(benchmark.train.__getitem__, range(70))}
    for batch in epochs(benchmark.train, BatchConfig(batch_size=16), 1, 1)[0]:
        assert batch["inputs"].shape[1] % 64 == 0
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
        assert (batch["targets"][batch["inputs"] == PAD] == IGNORED).all()
        for tokens, target in zip(batch["inputs"], batch["targets"], strict=True):
            if (tokens != PAD).any():
                expected = targets[tuple(tokens[tokens != PAD].tolist())]
                np.testing.assert_array_equal(target[: len(expected)], expected)


def test_the_last_batch_may_have_fewer_rows(benchmark):
    config = BatchConfig(batch_size=16)
    whole, short = (epochs(benchmark.train, config, 1, 1, row_multiple=multiple)[0] for multiple in (None, 4))
    assert [len(batch["inputs"]) for batch in whole] == [16] * 5
    assert sorted(len(batch["inputs"]) for batch in short) == [8, 16, 16, 16, 16]
    assert rows_of(whole) == rows_of(short)
    halves = [epochs(benchmark.train, config, 1, 1, i, 2, row_multiple=4) for i in range(2)]
    for left, right, batch in zip(halves[0][0], halves[1][0], short, strict=True):
        np.testing.assert_array_equal(np.concatenate([left["targets"], right["targets"]]), batch["targets"])
    test = list(evaluation_batches(benchmark.test, BatchConfig(batch_size=8), row_multiple=2))
    assert [len(batch["inputs"]) for batch in test] == [8, 2]


def test_sorting_saves_padding(benchmark):
    def positions(sort_batches):
        config = BatchConfig(batch_size=8, sort_batches=sort_batches)
        return sum(batch["inputs"].size for batch in epochs(benchmark.train, config, 0, 1)[0])

    assert positions(8) < 0.85 * positions(1)


def test_order_depends_on_seed_and_epoch_alone(benchmark):
    config = BatchConfig(batch_size=16)
    whole = [batch for epoch in epochs(benchmark.train, config, 5, 2) for batch in epoch]
    other = epochs(benchmark.train, config, 6, 1)[0]
    assert rows_of(whole[:5]) != rows_of(other)
    # Each process has its rows of the same batch, and resumes from the number of a batch.
    halves = []
    for index in range(2):
        batches = iter(training_batches(benchmark.train, config, 5, index, 2))
        assert batches.get_state() == {"next_index": 0}
        batches.set_state({"next_index": 3})
        halves.append([next(batches) for _ in range(7)])
    for left, right, batch in zip(*halves, whole[3:], strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), batch[name])


def test_evaluation_batches(benchmark):
    config = BatchConfig(batch_size=8)
    batches = list(evaluation_batches(benchmark.test, config))
    assert [batch["inputs"].shape[0] for batch in batches] == [8, 8]
    assert sorted(rows_of(batches)) == sorted(tuple(benchmark.test[i].inputs.tolist()) for i in range(9))
    for batch in batches:
        mass = batch["distributions"].sum(axis=-1)
        np.testing.assert_allclose(mass, batch["inputs"] != PAD, atol=1e-6)
        rows, positions = np.nonzero(batch["targets"] != IGNORED)
        assert (batch["distributions"][rows, positions, batch["targets"][rows, positions]] > 0).all()
    parts = [list(evaluation_batches(benchmark.test, config, index, 2)) for index in range(2)]
    for left, right, batch in zip(*parts, batches, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), batch[name])


def test_refuses(benchmark):
    with pytest.raises(UserError, match="16 does not divide among 3"):
        training_batches(benchmark.test, BatchConfig(batch_size=16), 0, process_count=3)
    with pytest.raises(UserError, match="16 does not divide among 3"):
        evaluation_batches(benchmark.test, BatchConfig(batch_size=16), process_count=3)
    with pytest.raises(UserError, match="3 does not divide among 2"):
        training_batches(benchmark.test, BatchConfig(batch_size=16), 0, process_count=2, row_multiple=3)
    for fields in ({"batch_size": 0}, {"pad_multiple": 0}, {"sort_batches": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            BatchConfig(**fields)
    with pytest.raises(ValueError, match="num_test=0 must be at least 1"):
        RegBenchConfig(num_test=0)
    with pytest.raises(IndexError):
        benchmark.test[9]
