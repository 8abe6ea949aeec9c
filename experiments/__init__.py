"""An experiment a module: ``python -m experiments.NAME``."""
