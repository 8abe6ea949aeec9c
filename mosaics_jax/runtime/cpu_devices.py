"""One JAX device a CPU core, for programs of many small operations."""

import contextlib
import os

import jax

VECTOR_FLAG = "--xla_cpu_prefer_vector_width=512"


def one_device_a_core(*rows: int) -> None:
    """Makes JAX see a device for each core of a CPU, or the largest number below that divides all ``rows``.

    XLA splits one operation among cores, which pays for large operations alone: on the three-moons networks two cores
    work on two sequences in half the time of one core, but on one sequence in two thirds. Call it before JAX starts its
    backend. GPUs and TPUs are left as they are; so is a number of devices that XLA_FLAGS or an earlier use of JAX set.
    """
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{VECTOR_FLAG} {given}".strip()
    if "device_count" in given:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = next(n for n in range(cores, 0, -1) if all(count % n == 0 for count in rows))
    with contextlib.suppress(RuntimeError):  # JAX has started, or jax_num_cpu_devices is set
        jax.config.update("jax_num_cpu_devices", devices)
