"""What benchmarks share: sizes of models, timing, peak memory, a description of the machine, tables and JSON."""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.entry import results
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.models.registry import MODELS, build_model, canonical_name
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned

OUT = flags.DEFINE_string("out", None, "file for the figures as JSON")
REPEATS = flags.DEFINE_integer(
    "repeats", 5, "timed runs, after 2 untimed ones (1 if it takes over 30 s)", lower_bound=1
)
WARM_UP = 2
LONG = 30.0  # seconds: a run that takes longer is the only one to warm up

SIZES: dict[str, dict[str, Any]] = {
    "small": {"vocab_size": 8192, "n_layer": 4, "n_head": 4, "n_embd": 256, "pmem_size": 896},
    "published": {"vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768, "pmem_size": 2688},
}


def build(name: str, size: str, **given: Any) -> LanguageModel:
    """A language model of that size, with those of the ``given`` fields that its config has."""
    fields = {field.name for field in dataclasses.fields(MODELS[canonical_name(name)][0])}
    return build_model(name, {field: value for field, value in {**SIZES[size], **given}.items() if field in fields})


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` runs, after the warm-up."""

    def once() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    for _ in range(WARM_UP):
        if once() > LONG:
            break
    return [once() for _ in range(repeats)]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def in_its_own_process(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """The dict that ``function(*args)`` returns in a fresh Python process, with ``peak_mib``, its peak memory.

    Exits if the process fails.
    """
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_measured, args=(writer, function, args))
    process.start()
    writer.close()
    try:
        return reader.recv()
    except EOFError:
        process.join()
        sys.exit(f"{function.__name__}{args} ended with status {process.exitcode}")
    finally:
        process.join()


def _measured(writer: Any, function: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> None:
    measured = function(*args)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    measured["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
    writer.send(measured)


def machine() -> dict[str, Any]:
    """What the figures depend on: the machine, its load, versions and the commit. Starts JAX."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return {
        **results.machine(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "commit": commit + ("+changes" if changed else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def report(rows: Sequence[Sequence[str]], figures: dict[str, Any]) -> None:
    """Prints the table and the machine, and writes ``figures`` with them to --out."""
    print("\n" + aligned(rows))
    where = machine()
    print(json.dumps(where), flush=True)
    if OUT.value:
        staging.write_file(
            pathlib.Path(OUT.value), (json.dumps({"machine": where, **figures}, indent=1) + "\n").encode()
        )
