"""Memory Mosaic and GPT-2 baseline as language models of children's stories (v1 section 5, figures 7 and 8).

    python -m experiments.babistories --flagfile=experiments/flags/demo.flags --workdir=runs/demo
    python -m experiments.babistories --flagfile=experiments/flags/babistories_12.flags --workdir=runs/babistories \
        --train_files=data/babistories_train --eval_files=data/babistories_val [--model=gpt2]

`demo` takes minutes on 2 CPU cores. The published run, 12 blocks and 21 B tokens, ended at a validation loss of
1.50 (published, BabiStories; not reproduced here). `--model` may name any model of the registry. WORKDIR/MODEL/ holds
each run, WORKDIR/results.json the results of all.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from experiments import entry
from experiments.entry.language_flags import define_language_flags, model_config_from_flags, run_from_flags
from experiments.entry.results import configs_that_ran
from experiments.entry.workdir import define_workdir_flag, workdir_from_flags
from mosaics_jax.data.corpus import CorpusConfig, open_corpus
from mosaics_jax.evaluation.figures import draw_loss_curves
from mosaics_jax.models.registry import build_model
from mosaics_jax.runtime import staging
from mosaics_jax.runtime.tables import aligned
from mosaics_jax.tasks.language import TextConfig, make_task, save_tokenizer, story_sampler
from mosaics_jax.training.loop import LoopConfig, TrainResult, train
from mosaics_jax.training.metrics import read_metrics
from mosaics_jax.training.optimizer import OptimizerConfig
from mosaics_jax.training.progress import say

define_workdir_flag()
define_language_flags()


def main(argv: list[str]) -> None:
    workdir, run = workdir_from_flags(), run_from_flags()
    text, loop = entry.from_flags(TextConfig), entry.from_flags(LoopConfig)
    optimizer = entry.from_flags(OptimizerConfig)
    # Every config is checked before the text is read. V is known only after.
    for name in run.model_names:
        model_config_from_flags(name, vocab_size=1)
    corpus = open_corpus(entry.from_flags(CorpusConfig), run.cache_dir or workdir / "cache")
    print(
        f"text: {corpus.name}; {corpus.train.meta.tokens:,} training and {corpus.evaluation.meta.tokens:,} evaluation "
        f"tokens of {corpus.tokenizer.vocab_size:,} kinds ({corpus.tokenizer.kind})",
        flush=True,
    )
    results: dict[str, Any] = {}
    for name in run.model_names:
        config = model_config_from_flags(name, corpus.vocab_size)
        model = build_model(name, dataclasses.asdict(config))
        samples = run.samples
        if samples and not model.can_decode:
            say(f"{name} does not generate text: no samples")
            samples = 0
        # Sampling needs all parameters on one process.
        sampled = samples and jax.process_count() == 1
        sample = story_sampler(model, corpus, samples, loop.seed) if sampled else None
        task = make_task(name, model, corpus, text, seed=loop.seed, sample=sample)
        save_tokenizer(corpus, workdir / name)
        result = train(workdir / name, loop, optimizer, task)
        results[name] = summary(result) | configs_that_ran(config, task.config["data"], optimizer, loop)
        if jax.process_index() == 0:
            report(workdir, corpus.name, results)
    name = run.model_names[0]
    stories = [record["text"] for record in read_metrics(workdir / name) if record["kind"] == "sample"]
    print(f"Beginnings [...] continued by {name}:\n\n{stories[-1]}" if stories else "")


def summary(result: TrainResult) -> dict[str, float]:
    """The measurements of one model for ``results.json``; losses in nats a token."""
    return {
        "params": result.params_count,
        "train_loss": result.train_loss,
        "val_loss": result.eval_metrics["loss"],
        "steps": result.step,
        "tokens_per_s": result.tokens_per_s,
    }


def report(workdir: Path, corpus_name: str, new: dict[str, Any]) -> None:
    """Merges new results into ``results.json``, draws the curves of all models there, prints the table."""
    path = workdir / "results.json"
    results = (json.loads(path.read_text()) if path.exists() else {}) | new
    staging.write_file(path, (json.dumps(results, indent=2) + "\n").encode())
    draw_loss_curves({name: read_metrics(workdir / name) for name in results}, corpus_name, workdir / "loss.png")
    rows = [("model", "parameters", "validation loss", "training loss", "steps", "tokens/s")]
    for name, r in results.items():
        losses = f"{r['val_loss']:.4f}", f"{r['train_loss']:.4f}"
        rows.append((name, f"{r['params']:,}", *losses, f"{r['steps']:,}", f"{r['tokens_per_s']:,.0f}"))
    print(f"\n{corpus_name}\n{aligned(rows)}\ncurves: {workdir / 'loss.png'}\n", flush=True)


if __name__ == "__main__":
    entry.run(main)
