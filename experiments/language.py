"""A language model as a training task: what the experiments on text share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaics_jax.data.corpus import Corpus
from mosaics_jax.data.windows import Batch, evaluation_windows, random_windows
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.loss import loss_evaluator
from mosaics_jax.inference import generate
from mosaics_jax.models import LANGUAGE_MODELS
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.runtime import staging
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Array, Params
from mosaics_jax.training.state import Task

Loss = Callable[[Params, Batch, Array], tuple[Array, dict[str, Array]]]
PROMPT_TOKENS, SAMPLE_TOKENS = 32, 160


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How the text is fed, and what is trained on it."""

    context_length: int = setting(512, "T: positions of a training window (and those that the baseline learns)")
    batch_size: int = setting(512, "windows in a batch, over all devices")
    z_loss: float = setting(0.0, "weight of log(Z)^2 in the training loss, Z the softmax's sum; e.g. 1e-4 (0: none)")
    eval_tokens: int = setting(0, "tokens of the evaluation text that an evaluation predicts (0: all)")

    def __post_init__(self) -> None:
        for name, least in (("context_length", 1), ("batch_size", 1), ("z_loss", 0), ("eval_tokens", 0)):
            if not getattr(self, name) >= least:  # so that NaN is refused too
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


def language_task(
    experiment: str,
    model_name: str,
    model_config: Any,
    corpus: Corpus,
    text: TextConfig,
    seed: int,
    sample: Callable[[Params], str] | None = None,
) -> Task:
    """Next-token prediction over random windows of the corpus; evaluation predicts every token of its text once."""
    model = LANGUAGE_MODELS[model_name][1](model_config)
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    train_data = random_windows(corpus.train.tokens, text.context_length, text.batch_size, seed, **processes)
    eval_data = evaluation_windows(
        corpus.evaluation.tokens,
        min(text.context_length, len(corpus.evaluation.tokens) - 1),
        text.batch_size,
        max_tokens=text.eval_tokens or None,
        **processes,
    )

    init, loss = training_functions(model, text.context_length, text.z_loss)
    config = {
        "model": model_name,
        "model_config": dataclasses.asdict(model_config),
        "text": dataclasses.asdict(text),
        "corpus": {
            "name": corpus.name,
            "train_tokens": corpus.train.meta.tokens_sha256,
            "eval_tokens": corpus.evaluation.meta.tokens_sha256,
            "tokenizer": corpus.tokenizer.fingerprint(),
        },
    }
    return Task(
        name=f"{experiment}/{model_name}",
        init=init,
        loss=loss,
        train_data=train_data,
        config=config,
        tokens_per_step=text.batch_size * text.context_length,
        evaluate=loss_evaluator(model, eval_data),
        sample=sample,
    )


def training_functions(
    model: LanguageModel, context_length: int, z_loss: float = 0.0
) -> tuple[Callable[[Array], Params], Loss]:
    """``init`` and ``loss`` of a `Task` that predicts each next token of windows of ``context_length``."""

    def init(key: Array) -> Params:
        return model.init(key, jnp.zeros((1, context_length), jnp.int32))["params"]

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        shards = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
        if context_length % shards:
            raise UserError(
                f"context_length={context_length} does not divide by mesh sequence:{shards}: take a multiple"
            )
        mean, _ = model.apply(
            {"params": params}, batch["inputs"], batch["targets"], True, z_loss, rngs={"dropout": key}, method="loss"
        )
        return mean, {}

    return init, loss


def save_tokenizer(corpus: Corpus, run: Path) -> None:
    """Puts the tokenizer beside the checkpoints of a run, for whoever generates text with it."""
    if jax.process_index() > 0 or (run / "tokenizer").exists():
        return
    try:
        with staging.directory(run / "tokenizer") as directory:
            corpus.tokenizer.save(directory)
    except OSError as error:
        raise UserError(f"cannot write in {run}: {error.strerror}") from error


def story_sampler(model_name: str, model_config: Any, corpus: Corpus, count: int, seed: int) -> Callable[[Params], str]:
    """A function of parameters that continues the beginnings of the first ``count`` texts of the evaluation corpus.

    A quarter of the text is given, at most PROMPT_TOKENS; at most SAMPLE_TOKENS are drawn, at temperature 0.8.
    """
    model = LANGUAGE_MODELS[model_name][1](model_config)
    end = corpus.tokenizer.end_of_text
    beginning = np.asarray(corpus.evaluation.tokens[: 1000 * (count + 1)]).astype(np.int32)
    texts = np.split(beginning, np.flatnonzero(beginning == end) + 1)
    prompts = [text[: max(1, min(PROMPT_TOKENS, len(text) // 4))].tolist() for text in texts[:count] if len(text)]

    def sample(params: Params) -> str:
        rows = generate(
            model, params, prompts, max_tokens=SAMPLE_TOKENS, seed=seed, end=end, vocab_size=corpus.tokenizer.vocab_size
        )
        decode = corpus.tokenizer.decode
        stories = [f"{decode(prompt)} [...] {decode(row)}" for prompt, row in zip(prompts, rows, strict=True)]
        return "\n\n".join(f"({i}) {story}" for i, story in enumerate(stories, start=1))

    return sample
