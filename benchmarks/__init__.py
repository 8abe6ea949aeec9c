"""A benchmark a module: ``python -m benchmarks.NAME``, in huge pages as the experiments are."""

import experiments as experiments
