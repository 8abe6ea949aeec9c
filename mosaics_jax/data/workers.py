"""A map over worker processes that yields results in order."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from mosaics_jax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` for each item, in order, computed by ``workers`` processes; one worker is this process.

    ``items`` may be endless: at most 2 ``workers`` + 1 items are submitted ahead of the results. ``function`` must be
    picklable. Raises UserError if a worker process dies.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: a lock that one of JAX's threads holds at the time would stay locked in a fork forever.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_initialize_worker
    )
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for want of memory: try fewer workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _initialize_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when its parent dies: a parent that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
