"""What a run prints and records: each step's metrics, the progress line, the time of everything between steps."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from mosaics_jax.runtime.stopping import Diverged
from mosaics_jax.training.metrics import MetricsWriter
from mosaics_jax.training.spikes import MAX_SKIPPED_IN_A_ROW

Result = TypeVar("Result")


def say(text: str) -> None:
    """Prints on the first process alone.

    If stdout cannot be written the run goes on: Ctrl-C also ends a ``| tee``, before the run has saved its state.
    """
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            print(text, flush=True)


class Progress:
    """Records the metrics of the steps of a run, which goes from step ``start`` to step ``steps``.

    Metrics are recorded one step late, so that the host never waits for the step that it has just dispatched.
    ``tokens_per_step`` is counted in ``unit``; a progress line is printed every ``log_every`` steps.
    """

    def __init__(self, writer: MetricsWriter, start: int, steps: int, tokens_per_step: int, log_every: int, unit: str):
        self._writer = writer
        self._start, self._steps = start, steps
        self._tokens_per_step = tokens_per_step
        self._log_every, self._unit = log_every, unit
        self._pending: tuple[int, Any] | None = None
        self._created = self._first_step = time.perf_counter()
        self._mark: float | None = None  # when the last step or other work ended; None before the first step
        self._skipped_in_a_row = 0
        self._seconds: list[float] = []  # durations of the steps since the last progress line

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Stores the metrics of a dispatched step, and records those of the step before. Raises as ``drain``."""
        if self._mark is None:
            self._mark = self._first_step = time.perf_counter()
            say(f"compiled in {self._first_step - self._created:.1f} s")
        self.drain()
        self._pending = step, metrics

    def drain(self) -> None:
        """Waits for the last dispatched step and records it. Raises Diverged if one of its metrics is not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        on_host = jax.device_get(metrics)
        names = dict.fromkeys(("loss", "grad_norm", "learning_rate", *on_host))
        values = {name: float(on_host[name]) for name in names}
        seconds = self._lap()
        if values.pop("spike", 0):
            self._skip(step, values)
            return
        self._skipped_in_a_row = 0
        check_finite(step, values)
        is_shown = step % self._log_every == 0 or step == self._steps
        self._writer.write(step, "train", {**values, "seconds": seconds}, board=is_shown)
        self._seconds.append(seconds)
        if is_shown:
            say(self._line(step, values))
            self._seconds.clear()

    def _skip(self, step: int, values: dict[str, float]) -> None:
        """Prints and records a skipped step. Raises Diverged after MAX_SKIPPED_IN_A_ROW of them."""
        shown = {name: values[name] for name in ("loss", "grad_norm", "skipped")}
        finite = {name: value for name, value in shown.items() if math.isfinite(value)}
        self._writer.write(step, "skipped", finite)
        say(
            f"step {step}/{self._steps}  skipped: loss {values['loss']:.4f}  gradient {values['grad_norm']:.3g}  "
            f"({values['skipped']:.0f} skipped so far)"
        )
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MAX_SKIPPED_IN_A_ROW} steps up to step {step} were skipped in a row: the run stops, earlier "
                "checkpoints are kept; try a lower learning rate, or a larger skip_spikes"
            )

    def timed(self, step: int, what: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Calls ``work(*arguments)`` once the dispatched steps are done, and returns its result.

        Prints and records the duration under the name ``what``; it is not counted in any step.
        """
        self.drain()
        result = work(*arguments)
        seconds = self._lap()
        # Not for TensorBoard: a run that is killed resumes after this step, whose points are on the disk already.
        self._writer.write(step, "time", {what: seconds}, board=False)
        say(f"step {step}/{self._steps}  {what} took {seconds:.2f} s")
        return result

    def record_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Records and prints an evaluation. Raises Diverged if a value is not finite."""
        values = {name: float(value) for name, value in values.items()}
        check_finite(step, values)
        self._writer.write(step, "eval", values)
        say(
            f"step {step}/{self._steps}  evaluation "
            + "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        )

    def record_sample(self, step: int, text: str) -> None:
        """Records and prints a sample."""
        self._writer.write(step, "sample", {"text": text})
        say(text)

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        seconds = now - (self._mark or now)
        self._mark = now
        return seconds

    def _line(self, step: int, values: dict[str, float]) -> str:
        tokens_per_s = self._tokens_per_step * len(self._seconds) / max(sum(self._seconds), 1e-9)
        elapsed = time.perf_counter() - self._first_step
        left = elapsed / (step - self._start) * (self._steps - step)
        return (
            f"step {step}/{self._steps}  loss {values['loss']:.4f}  gradient {values['grad_norm']:.3g}  "
            f"lr {values['learning_rate']:.3g}  {tokens_per_s:,.0f} {self._unit}/s  {duration(left)} left"
            + (f"  {values['skipped']:.0f} skipped" if values.get("skipped") else "")
        )


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raises Diverged, naming the metric and the step, if a value is NaN or infinite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(
                f"{name} is {value} at step {step}: the run stops, earlier checkpoints are kept; "
                "try a lower learning rate, a longer warm-up or a smaller clip_norm"
            )


def duration(seconds: float) -> str:
    """``1h02m``, ``3m20s`` or ``12s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
