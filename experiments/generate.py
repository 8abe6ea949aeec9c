"""Continues prompts with a trained language model, streaming.

    python -m experiments.generate --checkpoint=runs/demo --prompt="Once upon a time"
    python -m experiments.generate --checkpoint=runs/demo --prompt_file=prompts.txt --temperature=0.7 --top_p=0.9
    python -m experiments.generate --checkpoint=runs/demo

Several prompts are continued together, and printed in order. Without a prompt it asks for them, one a line, until
the end of input (Ctrl-D). Text goes to standard output, everything else to standard error.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
from absl import flags

from experiments import entry
from mosaics_jax.errors import UserError
from mosaics_jax.inference import (
    Burst,
    Sampling,
    Trained,
    beam_search,
    load_trained,
    longest_continuation,
    stories_in_order,
    stream,
)
from mosaics_jax.models import LanguageModel

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a run's directory, or the --workdir that holds it")
WHICH = flags.DEFINE_enum(
    "which", "newest", ["newest", "best"], "checkpoint of the run: the newest, or that of the least evaluation loss"
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "text to go on from; may be given several times")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "file with one prompt a line")
BEAM = flags.DEFINE_integer("beam", 0, "search with this many hypotheses instead of sampling (0: sample)")
SEED = flags.DEFINE_integer("seed", 0, "of the random draws; prompts typed one after the other count on from it")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "at most so many new tokens a prompt")
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
    trained = load_trained(CHECKPOINT.value, WHICH.value)
    size = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    say(f"{trained.run}: {type(trained.model).__name__}, {size:,} parameters, {trained.tokenizer.vocab_size:,} tokens")
    if prompts:
        write_stories(trained, prompts, sampling, SEED.value)
        return
    for number, line in enumerate(ask(sys.stdin)):
        try:
            check_prompts([line])
            write_stories(trained, [line], sampling, SEED.value + number)
        except UserError as error:
            say(f"error: {error}")


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, without blank ones. Raises UserError if it cannot be read or has none."""
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
    """Raises UserError on a prompt that is blank, or came in as bytes that are no UTF-8 (Python's lone surrogates)."""
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("the prompt is empty: give some text to go on from")
        if any("\ud800" <= char <= "\udfff" for char in prompt):
            raise UserError("the prompt is not UTF-8 text")


def ask(lines: TextIO) -> Iterator[str]:
    """Lines typed by the user, until the end of input."""
    lines.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]  # files have it
    say("type the beginning of a story and press Enter; Ctrl-D ends")
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = lines.readline()
        if not line:
            say("")
            return
        yield line.rstrip("\n")


def write_stories(trained: Trained, prompts: list[str], sampling: Sampling, seed: int) -> None:
    """Prints each prompt and its continuation, a blank line between two; says on standard error how fast it was."""
    model, tokenizer = trained.model, trained.tokenizer
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    common: dict[str, Any] = {
        "max_tokens": MAX_TOKENS.value,
        "end": tokenizer.end_of_text if STOP_AT_END.value else None,
        "vocab_size": tokenizer.vocab_size,
    }
    if BEAM.value:
        found = beam_search(model, trained.params, encoded, beams=BEAM.value, **common)
        print("\n\n".join(p + tokenizer.decode(best.tokens) for p, (best, *_) in zip(prompts, found, strict=True)))
        say("mean log-probability of a token: " + ", ".join(f"{best.score:.3f}" for best, *_ in found))
        return
    running = stream(model, trained.params, encoded, sampling=sampling, seed=seed, **common)
    bursts: list[Burst] = []

    def record() -> Iterator[Burst]:
        for burst in running:
            bursts.append(burst)
            yield burst

    for piece in stories_in_order(prompts, record(), tokenizer):
        print(piece, end="", flush=True)
    print()
    report(model, encoded, bursts)


def report(model: LanguageModel, prompts: list[list[int]], bursts: list[Burst]) -> None:
    """Says how fast it was, and which stories ended because the model has learned no further position."""
    for row, prompt in enumerate(prompts):
        count = sum(len(burst.tokens[row]) for burst in bursts)
        if count == longest_continuation(model, len(prompt), MAX_TOKENS.value) < MAX_TOKENS.value:
            say(f"stopped after {count} tokens: this model has learned {model.max_positions} positions and no more")
    timed = [burst for burst in bursts if not burst.compiled]
    tokens, timed_tokens = (sum(len(row) for burst in some for row in burst.tokens) for some in (bursts, timed))
    rate = f", {timed_tokens / sum(burst.seconds for burst in timed):,.0f} tokens/s after compilation" if timed else ""
    say(f"{tokens:,} tokens{rate}")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    entry.run(main)
