"""Continues prompts with a trained language model, streaming.

    python -m experiments.generate --checkpoint=runs/demo --prompt="Once upon a time"
    python -m experiments.generate --checkpoint=runs/demo --prompt_file=prompts.txt --temperature=0.7 --top_p=0.9
    python -m experiments.generate --checkpoint=runs/demo

Several prompts are continued together and printed in order. Without a prompt, the program asks for prompts, one a line,
until the end of input (Ctrl-D). Text is printed to standard output, everything else to standard error.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
from absl import flags

from experiments import entry
from mosaics_jax.data.tokenizers import Tokenizer
from mosaics_jax.errors import UserError
from mosaics_jax.inference import Burst, Sampling, beam_search, decodable, longest_continuation, stream, stream_text
from mosaics_jax.models.language_model import LanguageModel
from mosaics_jax.shapes import Params
from mosaics_jax.training import open_run

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a run's directory, or the --workdir that holds it")
WHICH = flags.DEFINE_enum(
    "which", "newest", ["newest", "best"], "checkpoint of the run: the newest, or that of the least evaluation loss"
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "text to continue; may be given several times")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "file with one prompt a line")
BEAM = flags.DEFINE_integer("beam", 0, "search with this many hypotheses instead of sampling (0: sample)")
SEED = flags.DEFINE_integer("seed", 0, "seed of the random draws; it is counted up by 1 for each prompt that is typed")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "largest number of new tokens for a prompt")
STOP_AT_END = flags.DEFINE_bool("stop_at_end", True, "stop where the story ends")
entry.define_flags(Sampling)


def main(argv: list[str]) -> None:
    if CHECKPOINT.value is None:
        raise UserError("--checkpoint is needed: the directory of a run, or its --workdir")
    if MAX_TOKENS.value < 1:
        raise UserError(f"max_tokens={MAX_TOKENS.value} must be at least 1")
    if BEAM.value < 0:
        raise UserError(f"beam={BEAM.value} must be 0 (sample) or the number of hypotheses")
    sampling = entry.from_flags(Sampling)
    prompts = list(PROMPT.value)
    if PROMPT_FILE.value is not None:
        prompts += read_prompts(Path(PROMPT_FILE.value))
    check_prompts(prompts)
    writer = load_writer(CHECKPOINT.value, WHICH.value)
    if prompts:
        write_texts(writer, prompts, sampling, SEED.value)
        return
    for number, line in enumerate(ask(sys.stdin)):
        try:
            check_prompts([line])
            write_texts(writer, [line], sampling, SEED.value + number)
        except UserError as error:
            print_note(f"error: {error}")


class TextModel(NamedTuple):
    """A language model in the form that generation runs (`decodable`), and its tokenizer."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer


def load_writer(checkpoint: str, which: str) -> TextModel:
    """The language model of a run. Raises UserError if there is none.

    The parameters are made `decodable` once for all prompts; those that were loaded are freed.
    """
    run = open_run(checkpoint, which)
    if run.tokenizer is None:
        raise UserError(
            f"{run.directory} holds no tokenizer: its model was not trained on text, or was converted alone"
        )
    if not isinstance(run.model, LanguageModel):
        raise UserError(f"{run.directory} holds no language model")
    model, params = decodable(run.model, run.params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    tokens = run.tokenizer.vocab_size
    print_note(f"{run.directory}: {type(model).__name__}, {size:,} parameters, {tokens:,} tokens")
    return TextModel(model, params, run.tokenizer)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank. Raises UserError if it cannot be read or has none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--prompt_file={path} cannot be read: {reason}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompt_file={path} is empty: put one prompt on a line")
    return prompts


def check_prompts(prompts: list[str]) -> None:
    """Raises UserError for a prompt that is blank, or was read from bytes that are not UTF-8 (lone surrogates)."""
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("the prompt is empty: give some text to continue")
        if any("\ud800" <= char <= "\udfff" for char in prompt):
            raise UserError("the prompt is not UTF-8 text")


def ask(lines: TextIO) -> Iterator[str]:
    """Yields the lines that the user types, until the end of input."""
    lines.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]  # TextIO does not declare it
    print_note("type the beginning of a story and press Enter; Ctrl-D ends")
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = lines.readline()
        if not line:
            print_note("")
            return
        yield line.rstrip("\n")


def write_texts(writer: TextModel, prompts: list[str], sampling: Sampling, seed: int) -> None:
    """Prints each prompt and its continuation, separated by blank lines; then the speed, to standard error."""
    model, params, tokenizer = writer
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    common: dict[str, Any] = {
        "max_tokens": MAX_TOKENS.value,
        "end": tokenizer.end_of_text if STOP_AT_END.value else None,
        "vocab_size": tokenizer.vocab_size,
    }
    if BEAM.value:
        best = [hypotheses[0] for hypotheses in beam_search(model, params, encoded, beams=BEAM.value, **common)]
        print("\n\n".join(p + tokenizer.decode(h.tokens) for p, h in zip(prompts, best, strict=True)))
        print_note("mean log-probability of a token: " + ", ".join(f"{h.score:.3f}" for h in best))
        return
    stream_of_bursts = stream(model, params, encoded, sampling=sampling, seed=seed, **common)  # checks the prompts
    bursts: list[Burst] = []

    def record() -> Iterator[Burst]:
        for burst in stream_of_bursts:
            bursts.append(burst)
            yield burst

    for piece in stream_text(prompts, record(), tokenizer):
        print(piece, end="", flush=True)
    print()
    report(model, encoded, bursts)


def report(model: LanguageModel, prompts: list[list[int]], bursts: list[Burst]) -> None:
    """Prints the speed, and which texts ended because the model has learned no further position."""
    for row, prompt in enumerate(prompts):
        count = sum(len(burst.tokens[row]) for burst in bursts)
        if count == longest_continuation(model, len(prompt), MAX_TOKENS.value) < MAX_TOKENS.value:
            print_note(
                f"stopped after {count} tokens: this model has learned {model.max_positions} positions and no more"
            )
    timed = [burst for burst in bursts if not burst.compiled]
    tokens, timed_tokens = (sum(len(row) for burst in some for row in burst.tokens) for some in (bursts, timed))
    rate = f", {timed_tokens / sum(burst.seconds for burst in timed):,.0f} tokens/s after compilation" if timed else ""
    print_note(f"{tokens:,} tokens{rate}")


def print_note(message: str) -> None:
    """Prints to standard error."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    entry.run(main)
