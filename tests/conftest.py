"""Shared by all tests: float64 on demand, programs that compile quickly, and one compilation cache for the suite."""

import os
import pathlib
import signal

import jax
import pytest

# Most of a test's time is XLA's compilation. With these flags it takes a quarter of that, and the programs run slower;
# `XLA_FLAGS= pytest ...` tests the programs that users run. Those that tests start in other processes inherit them.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # later ones do not know the flag
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", COMPILE_QUICKLY)
os.environ.setdefault("GLIBC_TUNABLES", "")  # or every entry point restarts itself, which takes a second

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A shell has SIGINT ignored in what runs in its background, and so would be all programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield
