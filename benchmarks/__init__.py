"""A benchmark a module: ``python -m benchmarks.NAME``."""
