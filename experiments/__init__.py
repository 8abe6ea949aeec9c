"""An experiment a module: ``python -m experiments.NAME``.

On CPU, XLA takes the memory of each step from malloc and gives it back afterwards, so that a step of a large model
meets half a million fresh pages, which costs an eighth of its time. With huge pages it meets a few thousand. glibc
reads whether to ask for them when a process starts, so ``python -m`` starts once more here, before anything else is
imported. To go without, set GLIBC_TUNABLES, if only to nothing.
"""

import os
import sys

# The first argument is "-m" while Python looks for the module that it is to run.
if sys.platform == "linux" and sys.argv[:1] == ["-m"] and "GLIBC_TUNABLES" not in os.environ:
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
