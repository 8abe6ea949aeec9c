"""Memory Mosaic and GPT-2 baseline as language models of children's stories (v1 section 5, figures 7 and 8).

    python -m experiments.babistories --flagfile=experiments/flags/demo.flags --workdir=runs/demo
    python -m experiments.babistories --flagfile=experiments/flags/babistories_12.flags --workdir=runs/babistories \
        --train_files=data/babistories_train --eval_files=data/babistories_val [--model=gpt2]

`demo` takes minutes on 2 CPU cores. The published run, 12 blocks and 21 B tokens, ended at a validation loss of
1.50 (published, BabiStories; not reproduced here). WORKDIR/MODEL/ holds each run, WORKDIR/results.json their results.
"""

import json
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import entry
from experiments.language import TextConfig, language_task, save_tokenizer, story_sampler
from mosaics_jax.data.corpus import CorpusConfig, open_corpus
from mosaics_jax.errors import UserError
from mosaics_jax.evaluation.figures import draw_loss_curves
from mosaics_jax.models import LANGUAGE_MODELS, GPT2Config, MosaicConfig
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.workdir import check_workdir
from mosaics_jax.training.loop import LoopConfig, TrainResult, train
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.optimizer import OptimizerConfig

EXPERIMENT = "babistories"
MODEL = flags.DEFINE_list("model", ["mosaic"], f"what to train, comma separated: {', '.join(LANGUAGE_MODELS)}")
WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; the same command goes on from there")
CACHE_DIR = flags.DEFINE_string("cache_dir", "", "where tokens of raw text are kept (empty: WORKDIR/cache)")
SAMPLES = flags.DEFINE_integer("samples", 3, "stories that a sample continues", lower_bound=0)
CONFIGS = (CorpusConfig, TextConfig, MosaicConfig, GPT2Config, OptimizerConfig, LoopConfig)
for config_class in CONFIGS:
    entry.define_flags(config_class)


def main(argv: list[str]) -> None:
    if not WORKDIR.value:
        raise UserError("--workdir is needed: a directory for checkpoints, metrics and results")
    for name in MODEL.value:
        if name not in LANGUAGE_MODELS:
            raise UserError(f"--model={name}: the models are {', '.join(LANGUAGE_MODELS)}")
    workdir = check_workdir(WORKDIR.value)
    text, loop, optimizer = (
        entry.from_flags(TextConfig),
        entry.from_flags(LoopConfig),
        entry.from_flags(OptimizerConfig),
    )
    # Every config is made, and so checked, before the text is touched: V is known only after.
    for name in MODEL.value:
        entry.from_flags(LANGUAGE_MODELS[name][0], vocab_size=1)
    corpus = open_corpus(entry.from_flags(CorpusConfig), CACHE_DIR.value or workdir / "cache")
    print(
        f"text: {corpus.name}; {corpus.train.meta.tokens:,} training and {corpus.evaluation.meta.tokens:,} evaluation "
        f"tokens of {corpus.tokenizer.vocab_size:,} kinds ({corpus.tokenizer.kind})",
        flush=True,
    )
    results: dict[str, Any] = {}
    for name in MODEL.value:
        config = entry.from_flags(LANGUAGE_MODELS[name][0], vocab_size=corpus.vocab_size)
        # One process alone can continue stories: with several, none holds all parameters.
        sampling = SAMPLES.value and jax.process_count() == 1
        sample = story_sampler(name, config, corpus, SAMPLES.value, loop.seed) if sampling else None
        task = language_task(EXPERIMENT, name, config, corpus, text, loop.seed, sample)
        save_tokenizer(corpus, workdir / name)
        results[name] = summary(train(workdir / name, loop, optimizer, task))
        if jax.process_index() == 0:
            report(workdir, corpus.name, results)
    for name in MODEL.value[:1]:
        stories = [record["text"] for record in read_metrics(workdir / name) if record["kind"] == "sample"]
        print(f"Beginnings [...] continued by {name}:\n\n{stories[-1]}" if stories else "")


def summary(result: TrainResult) -> dict[str, float]:
    """What ``results.json`` says of a model; losses in nats a token."""
    return {
        "params": result.params_count,
        "train_loss": result.train_loss,
        "val_loss": result.eval_metrics["loss"],
        "steps": result.step,
        "tokens_per_s": result.tokens_per_s,
    }


def report(workdir: Path, corpus_name: str, new: dict[str, Any]) -> None:
    """Merges new results into ``results.json``, draws the curves of all of them, prints the table."""
    path = workdir / "results.json"
    results = (json.loads(path.read_text()) if path.exists() else {}) | new
    staging.write_file(path, (json.dumps(results, indent=2) + "\n").encode())
    draw_loss_curves({name: read_metrics(workdir / name) for name in results}, corpus_name, workdir / "loss.png")
    rows = [("model", "parameters", "validation loss", "training loss", "steps", "tokens/s")]
    for name, r in results.items():
        rows.append(
            (
                name,
                f"{r['params']:,}",
                f"{r['val_loss']:.4f}",
                f"{r['train_loss']:.4f}",
                f"{r['steps']:,}",
                f"{r['tokens_per_s']:,.0f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{corpus_name}")
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    print(f"curves: {workdir / 'loss.png'}\n", flush=True)


if __name__ == "__main__":
    entry.run(main)
