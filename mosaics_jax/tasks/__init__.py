"""Tasks: a model and data become something that `mosaics_jax.training.train` can train."""
