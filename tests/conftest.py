"""Shared by all tests: fast compilation, one compilation cache for the suite, and a fixture for float64."""

import os
import pathlib
import signal

import jax
import pytest

# Tests spend most of their time in XLA's compiler. These flags make compilation four times as fast and programs slower;
# `XLA_FLAGS= pytest ...` tests the programs that users run. Processes that tests start inherit the flags.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # later versions reject the flag
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", COMPILE_QUICKLY)
os.environ.setdefault("GLIBC_TUNABLES", "")  # or every entry point restarts itself, which takes a second

CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Background jobs of a shell ignore SIGINT, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def x64():
    """Runs the test in float64."""
    with jax.enable_x64(True):
        yield
