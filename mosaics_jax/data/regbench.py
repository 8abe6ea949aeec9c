"""RegBench: three splits of problems from different automata, cached on disk, and batches of problems.

A seed gives a sequence of automata. The held-out splits are its beginning and the training split follows. The held-out
splits are therefore equal for every number of training automata, and a small training set begins a larger one.

A cache directory holds all problems in this order, concatenated:
tokens.npy, states.npy     uint8 (n,)
offsets.npy                int64 (problems + 1,): the beginning of each problem, and n
transitions.npy            int8 (problems, states, V)
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
    PAD,
    VOCAB_SIZE,
    AutomataConfig,
    Automaton,
    Problem,
    as_problem,
    draw_automaton,
    draw_problem,
)
from mosaics_jax.data.batches import Batch, batch_dataset, process_rows
from mosaics_jax.data.random_bits import ORDER_STREAM, random_bits
from mosaics_jax.data.workers import parallel_map
from mosaics_jax.errors import UserError
from mosaics_jax.runtime import staging
from mosaics_jax.settings import setting
from mosaics_jax.shapes import IGNORED

FORMAT, VERSION = "mosaics_jax regbench", 1
META_FILE = "meta.json"
BLOCK = 500  # automata that a worker draws at a time
MAX_DRAWS = 10  # draws, duplicates included, per automaton that is asked for (as in the authors' code)


@dataclasses.dataclass(frozen=True)
class RegBenchConfig:
    """The number of automata in each split. There is one problem per automaton."""

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
    """How problems are combined into batches."""

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
    """A split: ``problems[i]`` is a `Problem`. The module's docstring describes the arrays; offsets count tokens."""

    tokens: np.ndarray
    states: np.ndarray
    offsets: np.ndarray
    transitions: np.ndarray

    def __len__(self) -> int:
        return len(self.transitions)

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"problem {index} of {len(self)}")
        span = slice(self.offsets[index], self.offsets[index + 1])
        return as_problem(self.tokens[span], self.states[span], self.transitions[index])

    @property
    def lengths(self) -> np.ndarray:
        """int64 (problems,): the number of positions T of each problem, one less than its tokens."""
        return np.diff(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Problems":
        """Problems ``start`` to ``stop - 1``, as views."""
        offsets = self.offsets[start : stop + 1]
        return dataclasses.replace(self, offsets=offsets, transitions=self.transitions[start:stop])


@dataclasses.dataclass(frozen=True)
class RegBench:
    """The three splits. Each automaton occurs once in all of them."""

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
    """The splits of the configs, generated once by ``workers`` processes and cached under ``cache_dir``.

    The splits do not depend on ``workers``. Caches of other configs or of another version have other names; a damaged
    cache is made again. Raises UserError if there are not enough different automata, or if the cache cannot be written.
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
    draws = MAX_DRAWS * wanted
    blocks = [range(start, min(start + BLOCK, draws)) for start in range(0, draws, BLOCK)]
    draw = functools.partial(_draw, automata, config.data_seed)
    problems: dict[Automaton, tuple[np.ndarray, np.ndarray]] = {}  # the first problem of each automaton
    # Starting a worker takes seconds: few automata are drawn faster by this process.
    workers = min(workers, -(-wanted // (4 * BLOCK)))
    # disable=None hides the bar if standard error is not a terminal.
    with (
        contextlib.closing(parallel_map(draw, blocks, workers)) as drawn,
        tqdm(total=wanted, unit=" automata", desc="drawing", disable=None if progress else True) as bar,
    ):
        for automaton, tokens, states in itertools.chain.from_iterable(drawn):
            if automaton in problems:
                continue
            problems[automaton] = tokens, states
            bar.update()
            if len(problems) == wanted:
                break
    if len(problems) < wanted:
        raise UserError(
            f"{wanted} different automata are asked for (validation, test and training), and {draws} draws gave "
            f"{len(problems)}: ask for fewer, or allow more states, symbols or edges"
        )
    lengths = [len(tokens) for tokens, _ in problems.values()]
    return Problems(
        tokens=np.concatenate([tokens for tokens, _ in problems.values()]),
        states=np.concatenate([states for _, states in problems.values()]),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        transitions=np.stack([automaton.transitions(automata.max_states) for automaton in problems]),
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
    except FileExistsError:  # another process has written the same cache in the meantime
        return
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _read(target: Path, identity: dict[str, Any]) -> Problems | None:
    """What `_write` wrote with this identity; None if it is missing or damaged."""
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
    """The number of batches that hold each problem once."""
    return -(-len(problems) // config.batch_size)


def training_batches(
    problems: Problems,
    config: BatchConfig,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int | None = None,
) -> grain.IterDataset:
    """Endless batches; an epoch holds every problem once, in an order that depends on ``seed`` and its number only.

    A batch is a dict of ``inputs`` and ``targets``, int32 (B, T) each, padded with PAD and IGNORED to a length T that
    differs from batch to batch. B is batch_size / process_count. The last batch of an epoch holds the remaining
    problems; its rows over all processes are the next multiple of ``row_multiple`` (default: batch_size), and rows
    without a problem are padding. The state of the iterator is the number of the next batch. Raises UserError if the
    rows do not divide among the processes.

    To save padding, the shuffled problems are split into pools of ``sort_batches`` batches. Each pool is sorted by
    padded length, with problems of one length in random order, and cut into batches, and the batches are shuffled. The
    incomplete batch is not part of a pool: sorting would always give its larger weight to the longest problems.
    """
    collate = _Collator(problems, config, process_index, process_count, row_multiple)
    order = functools.lru_cache(1)(lambda epoch: _epoch_order(collate.padded_lengths, config, seed, epoch))

    def make_batch(index: int) -> Batch:
        epoch, position = divmod(index, batches_per_epoch(problems, config))
        return collate(order(epoch)[position], distributions=False)

    return batch_dataset(make_batch)


def evaluation_batches(
    problems: Problems,
    config: BatchConfig,
    process_index: int = 0,
    process_count: int = 1,
    row_multiple: int | None = None,
) -> grain.IterDataset:
    """Finite batches that hold all problems once, sorted by length.

    Batches, arguments and errors are those of `training_batches`. Batches also hold ``distributions``, float32
    (B, T, V), which `Problem` describes; they are 0 at padding.
    """
    collate = _Collator(problems, config, process_index, process_count, row_multiple)
    order = np.argsort(problems.lengths, kind="stable")

    def make_batch(index: int) -> Batch:
        members = order[index * config.batch_size : (index + 1) * config.batch_size]
        return collate(members, distributions=True)

    return batch_dataset(make_batch, batches_per_epoch(problems, config))


class _Collator:
    """Combines problems into the rows of a batch that belong to this process."""

    def __init__(
        self,
        problems: Problems,
        config: BatchConfig,
        process_index: int,
        process_count: int,
        row_multiple: int | None,
    ):
        self._row_multiple = row_multiple or config.batch_size
        self._problems, self._batch_size = problems, config.batch_size
        self._process = process_index, process_count
        self.padded_lengths = -(-problems.lengths // config.pad_multiple) * config.pad_multiple
        for rows in (config.batch_size, self._row_multiple):
            process_rows(rows, *self._process)  # raises UserError if they do not divide

    def __call__(self, members: np.ndarray, distributions: bool) -> Batch:
        """The rows of this process of a batch of the problems with these numbers, at most batch_size of them."""
        rows = min(-(-len(members) // self._row_multiple) * self._row_multiple, self._batch_size)
        process = process_rows(rows, *self._process)
        shape = process.stop - process.start, int(self.padded_lengths[members].max())
        batch = {"inputs": np.full(shape, PAD, np.int32), "targets": np.full(shape, IGNORED, np.int32)}
        if distributions:
            batch["distributions"] = np.zeros((*shape, VOCAB_SIZE), np.float32)
        for row, member in enumerate(members[process]):
            problem = self._problems[member]
            for name, array in batch.items():
                values = getattr(problem, name)
                array[row, : len(values)] = values
        return batch


def _epoch_order(padded_lengths: np.ndarray, config: BatchConfig, seed: int, epoch: int) -> list[np.ndarray]:
    """The numbers of the problems in each batch of an epoch."""
    problems, size = len(padded_lengths), config.batch_size
    count = -(-problems // size)
    bits = random_bits(seed, epoch, problems + count, ORDER_STREAM)
    order = np.argsort(bits[count:], kind="stable")
    full = problems // size * size
    pool_size = size * config.sort_batches
    pools = [order[start : min(start + pool_size, full)] for start in range(0, full, pool_size)]
    if config.sort_batches > 1:
        pools = [pool[np.argsort(padded_lengths[pool], kind="stable")] for pool in pools]
    sorted_order = np.concatenate([*pools, order[full:]])
    batches = [sorted_order[start : start + size] for start in range(0, problems, size)]
    return [batches[i] for i in np.argsort(bits[:count], kind="stable")]
