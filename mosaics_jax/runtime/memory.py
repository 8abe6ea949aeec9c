"""Memory of the C library: huge pages for programs that compute on CPU."""

import os
import sys
from collections.abc import Callable
from typing import Any

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc calls madvise(MADV_HUGEPAGE) on what it maps


def restart_with_huge_pages(main: Callable[..., Any]) -> None:
    """Restarts ``python -m NAME`` with huge pages, unless GLIBC_TUNABLES is set, even to an empty string.

    On CPU, XLA allocates the temporaries of each step with malloc and frees them afterwards. glibc returns blocks of
    that size to the kernel, so that the next step takes a page fault for every 4 KiB that it touches: 540,000 at the
    published size, which cost a tenth of the step. With huge pages it takes 3,000. glibc reads the setting only when a
    process starts, hence the restart, which imports everything once more (1 to 2 s).

    The alternative without a restart, ``mallopt`` with one arena, no mmap and no trimming, is as fast at first, but the
    heap fragments: a block that is freed does not fit the same aligned request again (glibc before 2.38), and after six
    steps of the published size the process had grown from 4.8 to 10.4 GB.

    ``main``: the function that the program is about to run. If it is not defined in the module that the command line
    names (a test, a notebook, a program that runs another one), a restart would start something else: nothing happens.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = [] if spec is None or main.__module__ != "__main__" else ["-m", spec.name]
    named = command and any(sys.orig_argv[i : i + 2] == command for i in range(len(sys.orig_argv)))
    if sys.platform != "linux" or not named or TUNABLES in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: HUGE_PAGES})
