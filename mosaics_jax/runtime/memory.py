"""Memory of the C library: huge pages for programs that compute on CPU."""

import os
import sys
from collections.abc import Callable
from typing import Any

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc calls madvise(MADV_HUGEPAGE) on what it maps


def restart_with_huge_pages(main: Callable[..., Any]) -> None:
    """Restarts ``python -m NAME`` with huge pages, unless GLIBC_TUNABLES is set, if only to nothing.

    On CPU, XLA allocates the temporaries of each step with malloc and frees them afterwards. glibc returns blocks of
    that size to the kernel, so that the next step takes a page fault for every 4 KiB that it touches: half a million at
    the published size, an eighth of the step. Huge pages leave a few thousand. glibc reads the setting only when a
    process starts, hence the restart, which imports everything once more (1 to 2 s). The other way, ``mallopt`` with
    neither mmap nor trimming, needs no restart and is as fast, but the heap fragments to several times its size: glibc
    before 2.38 does not reuse an aligned block for the same request.

    ``main``: the function that the program is about to run. If it is not defined in the module that ``python -m``
    started (a test, a notebook), the command line does not describe this program, and nothing happens.
    """
    started = sys.modules["__main__"]
    as_module = main.__module__ == "__main__" and getattr(started, "__spec__", None) is not None
    if sys.platform != "linux" or not as_module or TUNABLES in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: HUGE_PAGES})
