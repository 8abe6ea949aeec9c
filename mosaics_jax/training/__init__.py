"""Training: the one loop, its optimizer, mesh, checkpoints and metrics."""

from mosaics_jax.runtime.stopping import Diverged, Interrupted
from mosaics_jax.training.checkpoints import load_config, load_params
from mosaics_jax.training.loop import LoopConfig, TrainResult, train
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.state import Task

__all__ = [
    "Diverged",
    "Interrupted",
    "LoopConfig",
    "OptimizerConfig",
    "Task",
    "TrainResult",
    "load_config",
    "load_params",
    "train",
]
