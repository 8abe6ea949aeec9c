"""Generation from the command line, from checkpoints of tiny untrained networks."""

import dataclasses
import json
import shutil
import subprocess
import sys

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import pytest

from mosaics_jax.data.stories import write_corpus
from mosaics_jax.data.tokenizers import load_tokenizer, train_sentencepiece
from mosaics_jax.inference import Sampling, beam_search, generate
from mosaics_jax.models import GPT2Config, MosaicConfig
from mosaics_jax.models.registry import build_model
from mosaics_jax.training import open_run
from mosaics_jax.training.checkpoints import CheckpointWriter
from mosaics_jax.training.state import TrainState
from tests.experiments.entries import ROOT, environment, run

VOCABULARY = 320
SIZE = {"vocab_size": VOCABULARY + 64, "n_layer": 1, "n_head": 2, "n_embd": 16, "weight_tying": False}
CONFIGS = {"mosaic": MosaicConfig(**SIZE, pmem_size=8), "gpt2": GPT2Config(**SIZE, context_length=24)}


def save_run(directory, name, steps):
    """A run's checkpoints of different parameters at ``steps``, and its tokenizer."""
    fields = dataclasses.asdict(CONFIGS[name])
    model = build_model(name, fields)
    writer = CheckpointWriter(directory, {"task": {"model": {"name": name, **fields}, "data": {}}}, keep=5)
    data = iter(grain.MapDataset.source([0]).repeat().to_iter_dataset())
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, jnp.zeros((1, 4), jnp.int32))["params"]))
    for step in steps:
        params = init(jax.random.key(step))
        params["head"] *= 10 if name == "mosaic" else 50  # some tokens far likelier than others
        writer.save_best(step, params, {"loss": float(step)})
        writer.save(TrainState(jnp.int32(step), params, {}, jax.random.key_data(jax.random.key(0))), data)
    writer.close()
    return directory


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """WORKDIR/mosaic and WORKDIR/gpt2."""
    directory = tmp_path_factory.mktemp("workdir")
    text = directory / "text.txt"
    write_corpus(text, seed=0, count=30)
    tokenizer = train_sentencepiece(text.read_text().splitlines(), VOCABULARY)
    for name in CONFIGS:
        save_run(directory / name, name, (1, 2) if name == "mosaic" else (1,))
        (directory / name / "tokenizer").mkdir()
        tokenizer.save(directory / name / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def call(workdir, tmp_path_factory):
    """The results of all cases below, by their names: one process for all of them."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "prompts.txt").write_text("Once upon a time\n\n  \nThe fox\n")
    (directory / "none.txt").write_text("\n \n")
    (directory / "binary.txt").write_bytes(b"\xff\xfe\x00")
    empty = directory / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    damaged = directory / "damaged"
    shutil.copytree(workdir / "mosaic", damaged)
    for step in (1, 2):
        next((damaged / "checkpoints" / str(step) / "params").rglob("d/*")).write_bytes(b"")
    here, cold = f"--checkpoint={workdir}", "--temperature=0"
    long = "Once upon a time there was a fox. " * 9
    cases = {
        "typed": ([here, cold, "--max_tokens=9"], "Once upon a time\n\nThe fox 海\n"),
        "typed broken": ([here, "--max_tokens=9"], "\udcff\nThe fox"),
        "beam": ([here, "--beam=3", "--max_tokens=9", "--prompt=The fox", "--prompt=Once upon"], ""),
        "file": ([here, cold, "--max_tokens=9", f"--prompt_file={directory / 'prompts.txt'}", "--prompt=One"], ""),
        "best": ([here, cold, "--max_tokens=9", "--which=best", "--prompt=One", "--prompt=The fox"], ""),
        "seed 1": ([here, "--max_tokens=30", "--prompt=The fox", "--seed=1"], ""),
        "seed 2": ([here, "--max_tokens=30", "--prompt=The fox", "--seed=2"], ""),
        "gpt2": ([f"--checkpoint={workdir / 'gpt2'}", "--nostop_at_end", "--prompt=The fox"], ""),
        "gpt2 long": ([f"--checkpoint={workdir / 'gpt2'}", f"--prompt={long}"], ""),
        "gpt2 typed long": ([f"--checkpoint={workdir / 'gpt2'}", "--max_tokens=3"], f"{long}\nThe fox\n"),
        "empty": ([here, "--prompt="], ""),
        "blank": ([here, "--prompt=The fox", "--prompt=  "], ""),
        "no file": ([here, "--prompt_file=nowhere.txt"], ""),
        "empty file": ([here, f"--prompt_file={directory / 'none.txt'}"], ""),
        "binary file": ([here, f"--prompt_file={directory / 'binary.txt'}"], ""),
        "temperature": ([here, "--temperature=-1"], ""),
        "top_p": ([here, "--top_p=1.5"], ""),
        "top_k": ([here, "--top_k=-2"], ""),
        "beam -1": ([here, "--beam=-1"], ""),
        "max_tokens": ([here, "--max_tokens=0"], ""),
        "argument": ([here, "The fox"], ""),
        "no checkpoint": (["--prompt=The fox"], ""),
        "nowhere": ([f"--checkpoint={directory / 'nowhere'}", "--prompt=The fox"], ""),
        "no run": ([f"--checkpoint={directory}", "--prompt=The fox"], ""),
        "empty run": ([f"--checkpoint={empty}", "--prompt=The fox"], ""),
        "damaged run": ([f"--checkpoint={damaged}", "--prompt=The fox"], ""),
    }
    command = [sys.executable, str(ROOT / "tests" / "experiments" / "generate_cases.py")]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=env, input=json.dumps(list(cases.values())), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = dict(zip(cases, json.loads(done.stdout), strict=True))
    return results.__getitem__


@pytest.fixture(scope="module")
def expected(workdir):
    """A function: prompts to what the command must print for them, greedily, 9 tokens each."""

    def texts(*prompts, which="newest"):
        trained = open_run(workdir, which)
        encoded = [trained.tokenizer.encode(prompt) for prompt in prompts]
        common = {"max_tokens": 9, "end": trained.tokenizer.end_of_text, "vocab_size": VOCABULARY}
        rows = generate(trained.model, trained.params, encoded, sampling=Sampling(temperature=0), **common)
        return [prompt + trained.tokenizer.decode(row) for prompt, row in zip(prompts, rows, strict=True)]

    return texts


def test_prompts_of_file_and_flags_together(call, expected):
    status, out, err = call("file")
    assert status == 0
    assert out == "\n\n".join(expected("One", "Once upon a time", "The fox")) + "\n"
    assert "mosaic: MemoryMosaic, " in err and "tokens/s after compilation" in err


def test_the_best_checkpoint_instead_of_the_newest(call, expected):
    status, out, _ = call("best")
    assert status == 0
    assert out == "\n\n".join(expected("One", "The fox", which="best")) + "\n"
    assert out != "\n\n".join(expected("One", "The fox")) + "\n"


def test_session_asks_until_the_end_of_input(call, expected):
    """With characters that the tokenizer has not seen, and a blank line, which ends nothing."""
    status, out, err = call("typed")
    assert status == 0
    assert out.splitlines() == "\n".join(expected("Once upon a time", "The fox 海")).splitlines()
    assert err.count("> ") == 4 and err.count("error: the prompt is empty") == 1
    status, out, err = call("typed broken")
    assert status == 0 and out.startswith("The fox") and err.count("error: the prompt is not UTF-8") == 1


def test_seed(call):
    (status, first, _), (_, second, _) = call("seed 1"), call("seed 2")
    assert status == 0 and first.startswith("The fox") and first != second


def test_beam(call, workdir):
    trained = open_run(workdir)
    encoded = [trained.tokenizer.encode(prompt) for prompt in ("The fox", "Once upon")]
    common = {"max_tokens": 9, "end": trained.tokenizer.end_of_text, "vocab_size": VOCABULARY}
    (fox, *_), (once, *_) = beam_search(trained.model, trained.params, encoded, beams=3, **common)
    decode = trained.tokenizer.decode
    status, out, err = call("beam")
    assert status == 0 and out == f"The fox{decode(fox.tokens)}\n\nOnce upon{decode(once.tokens)}\n"
    assert f"{fox.score:.3f}, {once.score:.3f}" in err


def test_gpt2_ends_at_its_last_position(call, workdir):
    tokens = len(load_tokenizer(workdir / "gpt2" / "tokenizer").encode("The fox"))
    status, out, err = call("gpt2")
    assert status == 0 and out.startswith("The fox")
    assert f"stopped after {25 - tokens} tokens: this model has learned 24 positions" in err
    status, out, err = call("gpt2 typed long")
    assert status == 0 and out.startswith("The fox") and err.count("error: the prompt has ") == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gpt2 long", "tokens, this model has learned 24 positions: shorten it"),
        ("empty", "the prompt is empty"),
        ("blank", "the prompt is empty"),
        ("no file", "--prompt_file=nowhere.txt cannot be read: No such file"),
        ("empty file", "is empty: put one prompt on a line"),
        ("binary file", "cannot be read: not UTF-8 text"),
        ("temperature", "temperature=-1.0 must be 0 or more"),
        ("top_p", "top_p=1.5 must be above 0 and at most 1"),
        ("top_k", "top_k=-2 must be 0 (all tokens) or more"),
        ("beam -1", "beam=-1 must be 0 (sample) or the number of hypotheses"),
        ("max_tokens", "max_tokens=0 must be at least 1"),
        ("argument", "unexpected argument 'The fox'"),
        ("no checkpoint", "--checkpoint is needed"),
        ("nowhere", "nowhere is not a directory"),
        ("no run", "holds several runs"),
        ("empty run", "holds no finished checkpoint"),
        ("damaged run", "holds no whole checkpoint"),
    ],
)
def test_bad_input_is_one_clear_line(call, case, message):
    status, out, err = call(case)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, err
    assert message in lines[0]


def test_newest_whole_checkpoint_is_used_and_said(workdir, tmp_path):
    """The newest was half copied. In a process of its own, since the log goes past Python's standard error."""
    shutil.copytree(workdir / "mosaic", tmp_path / "mosaic")
    shutil.rmtree(tmp_path / "mosaic" / "checkpoints" / "2" / "params")
    done = run("generate", f"--checkpoint={tmp_path}", "--prompt=The fox", "--temperature=0", "--max_tokens=9")
    assert done.returncode == 0, done.stderr
    assert "checkpoints/2 is damaged" in done.stderr and "Traceback" not in done.stderr
    trained = open_run(tmp_path)
    (row,) = generate(
        trained.model,
        trained.params,
        [trained.tokenizer.encode("The fox")],
        max_tokens=9,
        sampling=Sampling(temperature=0),
        end=trained.tokenizer.end_of_text,
        vocab_size=VOCABULARY,
    )
    assert done.stdout == f"The fox{trained.tokenizer.decode(row)}\n"
