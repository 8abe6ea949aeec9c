"""Training: the one loop, its optimizer, mesh, checkpoints and metrics; and opening the runs that it leaves."""

from mosaics_jax.runtime.stopping import Diverged, Interrupted
from mosaics_jax.training.loop import LoopConfig, TrainResult, train
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.runs import Run, load_config, load_params, open_run
from mosaics_jax.training.state import Task

__all__ = [
    "Diverged",
    "Interrupted",
    "LoopConfig",
    "OptimizerConfig",
    "Run",
    "Task",
    "TrainResult",
    "load_config",
    "load_params",
    "open_run",
    "train",
]
