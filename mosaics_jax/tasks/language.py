"""Language models of a corpus: training on random windows, evaluation on the whole evaluation text."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mosaics_jax.data.corpus import Corpus
from mosaics_jax.data.windows import evaluation_windows, random_windows
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.loss import loss_evaluator
from mosaics_jax.inference import generate
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.runtime import staging
from mosaics_jax.settings import setting
from mosaics_jax.shapes import Params
from mosaics_jax.tasks.next_token import init_function, next_token_loss
from mosaics_jax.training.state import Task

PROMPT_TOKENS, SAMPLE_TOKENS = 32, 160


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How text is cut into training windows, and how the loss and its evaluation read them."""

    context_length: int = setting(512, "T: positions of a training window (and those that the baseline learns)")
    batch_size: int = setting(512, "windows in a batch, over all devices")
    z_loss: float = setting(0.0, "weight of log(Z)^2 in the training loss, Z the softmax's sum; e.g. 1e-4 (0: none)")
    eval_tokens: int = setting(0, "tokens of the evaluation text that an evaluation predicts (0: all)")

    def __post_init__(self) -> None:
        for name, least in (("context_length", 1), ("batch_size", 1), ("z_loss", 0), ("eval_tokens", 0)):
            if not getattr(self, name) >= least:  # written so that NaN is refused too
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


def make_task(
    model_name: str,
    model: LanguageModel,
    data: Corpus,
    config: TextConfig,
    *,
    seed: int,
    sample: Callable[[Params], str] | None = None,
) -> Task:
    """Next-token prediction over random windows of the training text.

    An evaluation predicts every token of the evaluation text once, or the first ``config.eval_tokens``. ``sample``
    turns parameters into a text for the run's record, see `story_sampler`. Raises UserError if the text is shorter than
    a window or the batch does not divide among the processes.
    """
    processes = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    train_data = random_windows(data.train.tokens, config.context_length, config.batch_size, seed, **processes)
    eval_data = evaluation_windows(
        data.evaluation.tokens,
        min(config.context_length, len(data.evaluation.tokens) - 1),
        config.batch_size,
        max_tokens=config.eval_tokens or None,
        **processes,
    )
    evaluate = loss_evaluator(model)
    corpus = {
        "name": data.name,
        "train_tokens": data.train.meta.tokens_sha256,
        "eval_tokens": data.evaluation.meta.tokens_sha256,
        "tokenizer": data.tokenizer.fingerprint(),
    }
    return Task(
        name=f"babistories/{model_name}",
        init=init_function(model, config.context_length),
        loss=next_token_loss(model, config.z_loss),
        train_data=train_data,
        config={
            "model": {"name": model_name, **dataclasses.asdict(model.config)},
            "data": {"text": dataclasses.asdict(config), "corpus": corpus},
        },
        tokens_per_step=config.batch_size * config.context_length,
        evaluate=lambda params: evaluate(params, eval_data),
        sample=sample,
    )


def save_tokenizer(corpus: Corpus, run: Path) -> None:
    """Saves the tokenizer in ``run``/tokenizer, where generation from the run's checkpoints looks for it."""
    if jax.process_index() > 0 or (run / "tokenizer").exists():
        return
    try:
        with staging.directory(run / "tokenizer") as directory:
            corpus.tokenizer.save(directory)
    except OSError as error:
        raise UserError(f"cannot write in {run}: {error.strerror}") from error


def story_sampler(model: LanguageModel, corpus: Corpus, count: int, seed: int) -> Callable[[Params], str]:
    """A function of parameters that continues the beginnings of the first ``count`` texts of the evaluation corpus.

    A prompt is the first quarter of its text, at most PROMPT_TOKENS tokens; a continuation has at most SAMPLE_TOKENS,
    drawn at temperature 0.8.
    """
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
