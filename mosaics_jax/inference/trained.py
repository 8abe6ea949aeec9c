"""A trained language model as its run left it: network, parameters and tokenizer."""

import os
import pathlib
from typing import NamedTuple

from mosaics_jax.data.tokenizers import Tokenizer, load_tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.inference.memories import decodable
from mosaics_jax.models import LanguageModel, build_language_model
from mosaics_jax.runtime.workdir import find_run
from mosaics_jax.shapes import Params
from mosaics_jax.training.checkpoints import load_config, load_params


class Trained(NamedTuple):
    """``model`` and ``params`` in the form that generation runs (`decodable`)."""

    run: pathlib.Path
    model: LanguageModel
    params: Params
    tokenizer: Tokenizer


def load_trained(checkpoint: str | os.PathLike, which: str = "newest") -> Trained:
    """A whole checkpoint of a language model's run, ``newest`` or ``best``, as ``load_params`` finds it.

    Raises UserError if there is none.
    """
    run = find_run(checkpoint)
    params, config = load_params(run, which), load_config(run, which)
    try:
        task = config["task"]
        model = build_language_model(task["model"], task["model_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run} holds no language model that this program knows ({error!r})") from error
    tokenizer = load_tokenizer(run / "tokenizer")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{run / 'tokenizer'} has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "it is not the tokenizer of this run"
        )
    return Trained(run, *decodable(model, params), tokenizer)
