"""RegBench: splits of problems from automata that no two of them share, kept on disk, and batches of them.

The held-out splits come first in the row of automata that a seed gives, and training follows: they are the same for
every number of training automata, and a small training set is the beginning of a larger one.

A cache directory holds, of all problems one after the other, held-out ones first:
tokens.npy, states.npy     uint8 (n,)
offsets.npy                int64 (problems + 1,), where each begins
transitions.npy            int8 (problems, S, V)
meta.json                  format, version, configs, and the SHA-256 of each array
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import grain
import numpy as np
from tqdm import tqdm

from mosaics_jax.data.automata import (
    ORDER_BITS,
    PAD,
    VOCAB_SIZE,
    AutomataConfig,
    Automaton,
    Problem,
    as_problem,
    draw_automaton,
    draw_problem,
    random_bits,
)
from mosaics_jax.data.windows import Batch
from mosaics_jax.data.workers import in_order
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging
from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

FORMAT, VERSION = "mosaics_jax regbench", 1
META_FILE = "meta.json"
BLOCK = 500  # automata that a worker draws at a time
DRAWS = 10  # automata drawn at most for each one that is wanted, duplicates included (as the authors' code does)


@dataclasses.dataclass(frozen=True)
class RegBenchConfig:
    """How many automata each split has; there is one problem of each."""

    num_train: int = setting(1000, "automata to train on (v1 figure 9: 100, 500, 1000, 2500, 40000)")
    num_validation: int = setting(250, "automata held out for validation")
    num_test: int = setting(250, "automata held out for the test")
    data_seed: int = setting(0, "seed of the automata and their problems")

    def __post_init__(self) -> None:
        for name in ("num_train", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """How problems are put together to batches."""

    batch_size: int = setting(32, "problems in a batch, over all devices")
    pad_multiple: int = setting(64, "batches are padded to a multiple of this length: each length is compiled once")
    sort_batches: int = setting(
        8, "batches whose problems are sorted by length among themselves, to save padding (1: none, the papers' recipe)"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Problems:
    """A split. ``problems[i]`` is a Problem; arrays as the module's docstring says, offsets into tokens and states."""

    tokens: np.ndarray
    states: np.ndarray
    offsets: np.ndarray
    transitions: np.ndarray

    def __len__(self) -> int:
        return len(self.transitions)

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"problem {index} of {len(self)}")
        place = slice(self.offsets[index], self.offsets[index + 1])
        return as_problem(self.tokens[place], self.states[place], self.transitions[index])

    @property
    def lengths(self) -> np.ndarray:
        """int64 (problems,): positions of each, one less than its tokens."""
        return np.diff(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Problems":
        """Problems ``start`` to ``stop``, as views."""
        offsets = self.offsets[start : stop + 1]
        return dataclasses.replace(self, offsets=offsets, transitions=self.transitions[start:stop])


@dataclasses.dataclass(frozen=True)
class RegBench:
    """The three splits. No automaton is in two of them, nor twice in one."""

    train: Problems
    validation: Problems
    test: Problems


def open_regbench(
    config: RegBenchConfig,
    automata: AutomataConfig,
    cache_dir: str | Path,
    workers: int = 1,
    progress: bool = True,
) -> RegBench:
    """The splits that the configs describe, generated once by ``workers`` processes and kept under ``cache_dir``.

    They do not depend on ``workers``. A cache of other configs or of another version has another name, a damaged one is
    made again. Raises UserError if there are not as many automata, or if the cache cannot be written.
    """
    identity = {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "automata": dataclasses.asdict(automata),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    target = Path(cache_dir) / f"regbench-{config.num_train}-{key}"
    damaged = target.exists()
    problems = _read(target, identity)
    if problems is None:
        problems = _generate(config, automata, workers, progress)
        _write(target, identity, problems, replace=damaged)
    held_out = config.num_validation + config.num_test
    return RegBench(
        train=problems.part(held_out, held_out + config.num_train),
        validation=problems.part(0, config.num_validation),
        test=problems.part(config.num_validation, held_out),
    )


def _generate(config: RegBenchConfig, automata: AutomataConfig, workers: int, progress: bool) -> Problems:
    wanted = config.num_validation + config.num_test + config.num_train
    draws = DRAWS * wanted
    blocks = [range(start, min(start + BLOCK, draws)) for start in range(0, draws, BLOCK)]
    draw = functools.partial(_draw, automata, config.data_seed)
    found: dict[Automaton, tuple[np.ndarray, np.ndarray]] = {}
    # A worker costs seconds to start: not for what one process draws in less.
    workers = min(workers, -(-wanted // (4 * BLOCK)))
    # disable=None: quiet where standard error is no terminal.
    with (
        contextlib.closing(in_order(draw, blocks, workers)) as drawn,
        tqdm(total=wanted, unit=" automata", desc="drawing", disable=None if progress else True) as bar,
    ):
        for automaton, tokens, states in itertools.chain.from_iterable(drawn):
            if automaton in found:
                continue
            found[automaton] = tokens, states
            bar.update()
            if len(found) == wanted:
                break
    if len(found) < wanted:
        raise UserError(
            f"{wanted} different automata are asked for (validation, test and training), and {draws} draws gave "
            f"{len(found)}: ask for fewer, or allow more states, symbols or edges"
        )
    lengths = [len(tokens) for tokens, _ in found.values()]
    return Problems(
        tokens=np.concatenate([tokens for tokens, _ in found.values()]),
        states=np.concatenate([states for _, states in found.values()]),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        transitions=np.stack([automaton.transitions(automata.max_states) for automaton in found]),
    )


def _draw(automata: AutomataConfig, seed: int, indices: range) -> list[tuple[Automaton, np.ndarray, np.ndarray]]:
    drawn = []
    for index in indices:
        automaton = draw_automaton(automata, seed, index)
        drawn.append((automaton, *draw_problem(automaton, automata, seed, index)))
    return drawn


def _write(target: Path, identity: dict[str, Any], problems: Problems, replace: bool) -> None:
    try:
        with staging.directory(target, replace) as temporary:
            hashes = {}
            for field in dataclasses.fields(problems):
                stream = io.BytesIO()
                np.save(stream, getattr(problems, field.name))
                hashes[field.name] = hashlib.sha256(stream.getbuffer()).hexdigest()
                staging.write_file(temporary / f"{field.name}.npy", stream.getvalue())
            meta = {**identity, "sha256": hashes}
            staging.write_file(temporary / META_FILE, (json.dumps(meta, indent=2) + "\n").encode())
    except FileExistsError:  # another process was quicker, and made the same
        return
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _read(target: Path, identity: dict[str, Any]) -> Problems | None:
    """What ``_write`` left there; None if there is nothing, something else, or something damaged."""
    try:
        meta = json.loads((target / META_FILE).read_bytes())
        hashes = meta.pop("sha256")
        if meta != identity:
            return None
        arrays = {}
        for field in dataclasses.fields(Problems):
            content = (target / f"{field.name}.npy").read_bytes()
            if hashlib.sha256(content).hexdigest() != hashes[field.name]:
                return None
            arrays[field.name] = np.load(io.BytesIO(content), allow_pickle=False)
        return Problems(**arrays)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def batches_per_epoch(problems: Problems, config: BatchConfig) -> int:
    return -(-len(problems) // config.batch_size)


def training_batches(
    problems: Problems,
    config: BatchConfig,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int | None = None,
) -> grain.IterDataset:
    """Endless batches, each epoch all problems once in an order that depends on ``seed`` and its number alone.

    A batch is a dict of ``inputs`` and ``targets``, int32 (B, T) each, padded with PAD and IGNORED to a T that changes
    from batch to batch. B is batch_size / process_count. An epoch's last batch, of the problems that are left, has the
    next multiple of ``row_multiple`` rows over all processes, by default batch_size: rows beyond its problems are
    padding. The iterator's state is the number of the next batch. UserError if rows do not divide among processes.

    To save padding, every ``sort_batches`` batches' worth of shuffled problems are sorted by length, problems that are
    padded to one length staying in random order, cut into batches, and these shuffled. A batch that is not full takes
    no part, or it would always be the longest problems that get its greater weight.
    """
    return _dataset(_Training(problems, config, seed, process_index, process_count, row_multiple))


def evaluation_batches(
    problems: Problems,
    config: BatchConfig,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int | None = None,
) -> grain.IterDataset:
    """Finite batches of all problems once, by length. As above, and ``distributions``, float32 (B, T, V).

    ``Problem`` says what that is and how to score; at padding it is 0.
    """
    return _dataset(_Evaluation(problems, config, process_index, process_count, row_multiple))


def _dataset(source: "_Batches") -> grain.IterDataset:
    # No threads: a batch is a copy of some kilobytes from memory, and an iterator without threads is free to make.
    return grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


class _Batches:
    """What both sources share; an item is the part of a batch that belongs to this process."""

    def __init__(
        self,
        problems: Problems,
        config: BatchConfig,
        process_index: int,
        process_count: int,
        row_multiple: int | None,
    ):
        self._multiple = row_multiple or config.batch_size
        for rows in (config.batch_size, self._multiple):
            if rows % process_count:
                raise UserError(f"a batch of {rows} does not divide among {process_count} processes")
        self._problems, self._config = problems, config
        self._process, self._processes = process_index, process_count
        self._padded_lengths = -(-problems.lengths // config.pad_multiple) * config.pad_multiple

    def __repr__(self) -> str:
        return f"{type(self).__name__}(problems={len(self._problems)}, {self._config})"

    def _batch(self, members: np.ndarray, distributions: bool) -> Batch:
        """The rows of this process of the batch of these problems, at most batch_size of them."""
        rows = min(-(-len(members) // self._multiple) * self._multiple, self._config.batch_size) // self._processes
        shape = rows, int(self._padded_lengths[members].max())
        batch = {"inputs": np.full(shape, PAD, np.int32), "targets": np.full(shape, IGNORED, np.int32)}
        if distributions:
            batch["distributions"] = np.zeros((*shape, VOCAB_SIZE), np.float32)
        for row, member in enumerate(members[self._process * rows : (self._process + 1) * rows]):
            problem = self._problems[member]
            for name, array in batch.items():
                values = getattr(problem, name)
                array[row, : len(values)] = values
        return batch


class _Training(_Batches):
    def __init__(self, problems: Problems, config: BatchConfig, seed: int, *where: Any):
        super().__init__(problems, config, *where)
        self._seed = seed
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])  # the last one asked for, and its batches

    def __len__(self) -> int:
        return 2**62  # endless

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, batches_per_epoch(self._problems, self._config))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._batch(self._epoch[1][place], distributions=False)

    def _order(self, epoch: int) -> list[np.ndarray]:
        size, number = self._config.batch_size, batches_per_epoch(self._problems, self._config)
        bits = random_bits(self._seed, epoch, ORDER_BITS, len(self._problems) + number)
        order = np.argsort(bits[number:], kind="stable")
        full = len(order) // size * size
        pool_size = size * self._config.sort_batches
        pools = [order[start : min(start + pool_size, full)] for start in range(0, full, pool_size)]
        if self._config.sort_batches > 1:
            pools = [pool[np.argsort(self._padded_lengths[pool], kind="stable")] for pool in pools]
        sorted_order = np.concatenate([*pools, order[full:]])
        batches = [sorted_order[start : start + size] for start in range(0, len(order), size)]
        return [batches[i] for i in np.argsort(bits[:number], kind="stable")]


class _Evaluation(_Batches):
    def __init__(self, problems: Problems, config: BatchConfig, *where: Any):
        super().__init__(problems, config, *where)
        self._order = np.argsort(problems.lengths, kind="stable")

    def __len__(self) -> int:
        return batches_per_epoch(self._problems, self._config)

    def __getitem__(self, index: int) -> Batch:
        size = self._config.batch_size
        return self._batch(self._order[index * size : (index + 1) * size], distributions=True)
