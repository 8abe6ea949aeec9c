"""A table that compares variants of a model on several benchmarks."""

from typing import Any

from experiments.sweeps.grid import Job
from experiments.sweeps.summaries import SUMMARIES, describe_machine


def table_of_variants(jobs: dict[str, dict[str, list[Job]]]) -> list[tuple[str, ...]]:
    """A row for each variant: on each benchmark its parameters, scores, seconds and machine, empty without a result.

    ``jobs``: benchmark -> variant -> its runs, one for each seed; the variants are those of the first benchmark. Raises
    UserError if results of other settings lie in the place of one.
    """
    rows = [("variant", *(f"{benchmark} {title}" for benchmark in jobs for title in cells_of(benchmark, [])))]
    for variant in next(iter(jobs.values())):
        results = {
            benchmark: [result for job in variants[variant] if (result := job.finished())]
            for benchmark, variants in jobs.items()
        }
        rows.append((variant, *(text for item in results.items() for text in cells_of(*item).values())))
    return rows


def cells_of(benchmark: str, results: list[dict[str, Any]]) -> dict[str, str]:
    """The columns of a table on one benchmark, and the cells of one variant, empty without results."""

    def mean(name: str) -> float:
        return sum(result[name] for result in results) / len(results)

    scores = {title: name for name, title in SUMMARIES[benchmark].scores.items() if "validation" not in name}
    return {
        "parameters": f"{results[0]['params']:,}" if results else "",
        **{title: f"{mean(name):.3f}" if results else "" for title, name in scores.items()},
        "seconds": f"{mean('seconds'):,.0f}" if results else "",
        "machine": "; ".join(dict.fromkeys(describe_machine(result["machine"]) for result in results)),
    }
