"""Measures and figures of trained networks.

    loss              mean loss of a language model over a text
    regbench, mqar    scores on in-context language learning and on associative recall
    moons             continuations of the moon networks and their error by context length
    disentanglement   whether each memory unit attends to one source, for any network
    figures, moon_figures, sequence_figures, published    what is drawn, and published results beside it

An evaluator is a function ``make(model, ...)`` that returns ``evaluate(params, batches) -> {metric: value}``.
"""

from mosaics_jax.evaluation.disentanglement import Disentanglement, measure_disentanglement
from mosaics_jax.evaluation.loss import loss_evaluator

__all__ = ["Disentanglement", "loss_evaluator", "measure_disentanglement"]
