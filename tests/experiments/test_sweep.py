"""Sweeps: grids, runs in processes of their own, tables and figures of their results."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.entry.sequence_flags import EXPERIMENTS, MQAR
from experiments.sweeps import results, runner, summaries
from experiments.sweeps.grid import Job, make_jobs, parse_grid, read_base
from experiments.sweeps.runner import core_shares, run_jobs
from experiments.sweeps.summaries import BETWEEN_STEPS, SUMMARIES, best, read_all, report, varying_settings
from mosaics_jax.errors import UserError
from mosaics_jax.training.loop import LoopConfig
from tests.experiments.entries import ROOT, command, environment, refused, run

SMOKE = ROOT / "experiments" / "flags" / "mqar_smoke.flags"


def test_a_grid_is_all_combinations():
    assert parse_grid("model=a,b; seed = 0") == [{"model": "a", "seed": "0"}, {"model": "b", "seed": "0"}]
    assert parse_grid("x:y=1:2,3:4;z=5,6") == [
        {"x": "1", "y": "2", "z": "5"},
        {"x": "1", "y": "2", "z": "6"},
        {"x": "3", "y": "4", "z": "5"},
        {"x": "3", "y": "4", "z": "6"},
    ]


@pytest.mark.parametrize("text", ["model", "model=", "=a", "a b=1", "x:y=1", "x=1:2", "x=1;x=2", "x=1,,2"])
def test_a_grid_that_cannot_be_read(text):
    with pytest.raises(UserError, match="--grid"):
        parse_grid(text)


def test_jobs(tmp_path):
    base = {"learning_rate": "2e-3", "num_train": "64"}
    grids = ["seed=0,1; model=gpt2", "seed=1; model=gpt2", "learning_rate=1e-3"]
    jobs = make_jobs("mqar", grids, base, tmp_path)
    assert [job.name for job in jobs] == ["gpt2,seed=0", "gpt2,seed=1", "learning_rate=1e-3"]
    assert jobs[0].settings == {"seed": "0", "model": "gpt2", "learning_rate": "2e-3", "num_train": "64"}
    assert jobs[2].settings == {"learning_rate": "1e-3", "num_train": "64"}
    assert [job.model_name for job in jobs] == ["gpt2", "gpt2", "mosaic"]
    assert jobs[2].configs["optimizer_config"]["learning_rate"] == 1e-3
    assert jobs[2].workdir == tmp_path / "learning_rate=1e-3"
    with pytest.raises(UserError, match="workdir is set"):
        make_jobs("mqar", ["workdir=here"], {}, tmp_path)
    with pytest.raises(UserError, match="n_head=5: n_embd=64 is not divisible"):
        make_jobs("mqar", ["n_head=5"], {}, tmp_path)
    with pytest.raises(UserError, match=r"n_layer=two: --n_layer=two: invalid literal"):
        make_jobs("mqar", ["n_layer=two"], {}, tmp_path)


def test_a_job_is_started_without_the_hyper_parameters_of_other_models(tmp_path):
    base = {"pmem_size": "32", "dropout": "0.1", "context_length": "16", "num_pairs": "2"}
    mosaic, transformer, mamba = make_jobs("mqar", ["model=mosaic,transformer,mamba"], base, tmp_path)
    of_data = {"context_length": "16", "num_pairs": "2"}
    assert mosaic.settings == {"model": "mosaic", "pmem_size": "32", **of_data}
    assert transformer.settings == {"model": "transformer", "dropout": "0.1", **of_data}
    assert mamba.settings == {"model": "mamba", "dropout": "0.1", **of_data}
    assert "dropout" not in mosaic.configs["model_config"]
    # A grid's flag must be one of its models'; those that lack it are run without.
    grid = "model=mosaic,s4d; n_embd:pmem_size=16:8,32:16"
    names = {job.name: job.settings for job in make_jobs("mqar", [grid], base, tmp_path)}
    assert names["mosaic,n_embd=16,pmem_size=8"]["pmem_size"] == "8"
    assert "pmem_size" not in names["s4d,n_embd=16,pmem_size=8"]
    for grid in ("model=mosaic; dropout=0.1,0.2", "dropout=0.1"):
        with pytest.raises(UserError, match=r"--grid: --dropout: mosaic has no such .*its own are --ic_dropout, --hd"):
            make_jobs("mqar", [grid], {}, tmp_path)
    assert make_jobs("mqar", ["dropout=0.1"], {"model": "gpt2"}, tmp_path)


def test_configs_do_not_depend_on_how_values_are_spelled():
    one = MQAR.setup(MQAR.parse({"learning_rate": "5e-4", "n_embd": "64", "bias": "true", "model": "gpt2"}))
    other = MQAR.setup(MQAR.parse({"learning_rate": "0.0005", "bias": "1", "log_every": "7", "model": "transformer"}))
    assert results.identity("gpt2", one.configs()) == results.identity("transformer", other.configs())
    third = MQAR.setup(MQAR.parse({"learning_rate": "5e-4", "seed": "1", "bias": "true", "model": "gpt2"}))
    assert results.identity("gpt2", third.configs()) != results.identity("gpt2", one.configs())


@pytest.mark.parametrize("path", sorted(SMOKE.parent.glob("regbench_[0-9]*.flags")), ids=lambda path: path.stem)
def test_published_recipe(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = read_base(str(path))
    expected = "num_train={} n_layer=2 n_head=8 n_embd=128 pmem_size=448 dropout=0.05 batch_size=32 epochs=200"
    expected = dict(pair.split("=") for pair in expected.format(path.stem.split("_")[1]).split())
    assert settings.items() >= expected.items()
    assert float(settings["learning_rate"]) == 5e-4


def test_base(tmp_path):
    (tmp_path / "more.flags").write_text("--seed=1\n")
    (tmp_path / "base.flags").write_text(f"# settings\n--n_layer=2\n--flagfile={tmp_path / 'more.flags'}\n")
    assert read_base(str(tmp_path / "base.flags")) == {"n_layer": "2", "seed": "1"}
    (tmp_path / "bad.flags").write_text("--nobias\n")
    for name in ("bad.flags", "none.flags"):
        with pytest.raises(UserError, match=f"--base=.*{name}"):
            read_base(str(tmp_path / name))


def result(model="mosaic", experiment="regbench", **given):
    made = {
        "experiment": experiment,
        "version": results.VERSION,
        "model": model,
        **{"num_train": 100, "num_pairs": 4, "context_length": 64, "n_embd": 64, "seed": 0},
        **{"accuracy": 0.5, "tvd": 0.5, "validation_accuracy": 0.5, "params": 1000, "steps": 10, "seconds": 1.0},
        "machine": {"device": "cpu", "devices": 1, "jax": "0.10"},
        "baselines": {"1-gram": {"accuracy": 0.4, "tvd": 0.6}, "3-gram": {"accuracy": 0.9, "tvd": 0.2}},
        "settings": {"model": model},
    }
    return {**made, **given}


def test_the_best_settings_by_validation_and_all_their_seeds():
    def tried(rate, seed, validation, **given):
        settings = {"model": "mosaic", "learning_rate": rate, "seed": seed, "log_every": seed + 1}
        return result(settings=settings, seed=seed, validation_accuracy=validation, **given)

    every = [tried(1e-3, 0, 0.6), tried(1e-3, 1, 0.8), tried(1e-2, 0, 0.9), tried(1e-2, 1, 0.3)]
    every += [tried(1e-2, 0, 0.1, num_train=500)]
    assert best(every, ("model", "num_train")) == [*every[:2], every[4]]


def recorded(model, seed=0, **given):
    """Results of a RegBench run with the ``given`` flags, in the present format."""
    setup = EXPERIMENTS["regbench"].setup({"model": model, "seed": seed, **given})
    made = {name: value for name, value in result(model, seed=seed).items() if name != "settings"}
    return {**made, "num_train": setup.data.num_train, "steps": setup.loop.steps, **setup.configs()}


def test_settings_are_those_of_the_configs_that_ran():
    every = [recorded("mosaic"), recorded("mosaic", num_train=500), recorded("mamba", learning_rate=1e-3, log_every=1)]
    # Steps and warm-up follow from num_train, the last learning rate from the highest; mamba has fields of its own.
    assert varying_settings(every, ("model", "num_train", *BETWEEN_STEPS)) == ["learning_rate"]
    every.append(recorded("mosaic", final_share=0.5, ic_dropout=0.0))
    assert varying_settings(every, ("num_train", *BETWEEN_STEPS)) == [
        *("ic_dropout", "learning_rate", "min_learning_rate"),
    ]
    assert "ic_dropout=0.0" in "".join(report_rows(every)[2])


def report_rows(every):
    summary = SUMMARIES["regbench"]
    return summaries.table(every, best(every, summary.point), summary)


def test_results_of_earlier_programs_stand_beside_new_ones():
    old = result("mosaic", settings={"model": "mosaic", "dropout": 0.3, "ic_dropout": 0.1}, num_train=1000)
    assert results.configs_of(old)["model_config"]["ic_dropout"] == 0.1
    new = recorded("mosaic", seed=1, ic_dropout=0.1)
    # Of the same settings: dropout is no hyper-parameter of a mosaic.
    assert varying_settings([old, new], ("seed",)) == []
    assert best([old, new], ("model", "num_train")) == [old, new]


def test_settings_that_are_left_out_are_those_of_the_loop():
    assert {*BETWEEN_STEPS} < {field.name for field in dataclasses.fields(LoopConfig)}


@pytest.mark.parametrize("experiment", SUMMARIES)
def test_figures_and_tables(experiment, tmp_path):
    models = ("mosaic", "deltanet", "one_of_my_own")
    every = [
        result(m, experiment, num_train=n, n_embd=n, seed=s, num_pairs=p, settings={"lr": s / 10, "log_every": n})
        for m in models
        for n in (100, 500)
        for s in (0, 1)
        for p in ((4, 8) if experiment == "mqar" else (4,))
    ]
    for number, one in enumerate(every):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_text(json.dumps(one))
    text = report(read_all(tmp_path, experiment), SUMMARIES[experiment], tmp_path)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert len(lines) == 2 + len(every)
    assert len({line.count("|") for line in lines}) == 1
    assert "lr=0.1" in lines[3] and "| 0.500 |" in lines[3] and "1 x cpu, jax 0.10" in lines[3]
    assert sum("| yes |" in line for line in lines) == len(every) / 2
    assert "log_every" not in text
    assert "results.md" in text


def test_both_names_of_the_transformer_are_one_curve(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(summaries, "draw_regbench", lambda accuracy, *others: drawn.append(accuracy))
    SUMMARIES["regbench"].draw([result("gpt2"), result("transformer", num_train=500)], tmp_path / "figure")
    assert drawn == [{"transformer": {100: [0.5], 500: [0.5]}}]


def test_results_of_another_version_are_named(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text(json.dumps(result(version=0)))
    with pytest.raises(UserError, match=r"old/results.json is of regbench, version 0"):
        read_all(tmp_path, "regbench")
    (tmp_path / "old" / "results.json").write_text("{")
    with pytest.raises(UserError, match="move it away"):
        read_all(tmp_path, "regbench")


RUN = """
import json, os, sys, time
settings = dict(a[2:].split("=", 1) for a in sys.argv[1:])
workdir = settings.pop("workdir")
open(workdir + "/started", "a").write("x")
if settings["kind"].startswith("core"):
    open(workdir + "/cores", "w").write(json.dumps(sorted(os.sched_getaffinity(0))))
if settings["kind"] == "bad":
    sys.exit("error: it cannot be")
if settings["kind"] == "flag":
    print("error: flags: Unknown command line flag 'kind'; see --help", file=sys.stderr)
    sys.exit(2)
time.sleep(600 if settings["kind"] == "slow" else 0)
configs = {"model_config": settings, "data_config": {}, "optimizer_config": {}}
configs["loop_config"] = {"steps": 1, "seed": 0, "log_every": 2}
results = {"experiment": "x", "version": VERSION, "model": settings["kind"], **configs}
json.dump(results, open(workdir + "/results.json", "w"))
"""


def configs(kind, seed=0):
    loop = {"steps": 1, "seed": seed, "log_every": 1}
    return {"model_config": {"kind": kind}, "data_config": {}, "optimizer_config": {}, "loop_config": loop}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Makes jobs whose runs are little programs that do what their ``kind`` says."""

    def start(job, arguments, environment):
        job.workdir.mkdir(exist_ok=True)
        program = RUN.replace("VERSION", str(results.VERSION))
        given = [f"--{name}={value}" for name, value in job.settings.items()]
        with (job.workdir / runner.LOG_NAME).open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", program, *given, f"--workdir={job.workdir}"], stderr=log)

    monkeypatch.setattr(runner, "start", start)
    return lambda *kinds: [Job("x", kind, tmp_path / kind, {"kind": kind}, kind, configs(kind)) for kind in kinds]


def started(tmp_path, name):
    return (tmp_path / name / "started").read_text() if (tmp_path / name / "started").exists() else ""


def test_what_is_finished_is_not_run_again(jobs, tmp_path, capsys):
    assert run_jobs(jobs("a", "b"), [], 1, lambda _: "well", tmp_path) == []
    assert run_jobs(jobs("a", "bad", "c"), [], 2, lambda _: "well", tmp_path) == ["bad"]
    assert [started(tmp_path, name) for name in ("a", "b", "c", "bad")] == ["x"] * 4
    said = capsys.readouterr().out
    assert re.search(r"1/2  a: well, in \d+s; \d+s left\n2/2  b: well, in \d+s\n", said)
    assert "runs: 3, finished before: 1" in said
    assert "bad: failed: it cannot be (status 1; " in said


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_runs_at_a_time_share_out_the_cores(jobs, tmp_path):
    every = os.sched_getaffinity(0)
    assert run_jobs(jobs("core0", "core1"), [], 2, str, tmp_path) == []
    assert os.sched_getaffinity(0) == every
    first, second = (set(json.loads((tmp_path / name / "cores").read_text())) for name in ("core0", "core1"))
    assert first and second and first | second == every
    assert not first & second or len(every) == 1
    for at_once in (1, len(every), 2 * len(every) + 1):
        shares = core_shares(at_once)
        assert len(shares) == at_once and all(shares) and set.union(*shares) == every


def test_a_flag_that_does_not_exist_ends_the_sweep(jobs, tmp_path):
    with pytest.raises(UserError, match="Unknown command line flag 'kind'"):
        run_jobs(jobs("flag", "a"), [], 1, str, tmp_path)
    assert not started(tmp_path, "a")


def test_results_of_other_settings_are_named(jobs, tmp_path):
    run_jobs(jobs("a"), [], 1, str, tmp_path)
    for name, other in (("a", configs("b")), ("a", configs("a", seed=1)), ("b", configs("a"))):
        with pytest.raises(UserError, match=r"a/results.json is of other settings \((kind was a, now b|seed|model)"):
            Job("x", "a", tmp_path / "a", {}, name, other).finished()
    assert Job("x", "a", tmp_path / "a", {}, "a", configs("a")).finished()  # the interval of logs may differ


def test_a_sweep_that_ends_ends_its_runs(jobs, tmp_path, monkeypatch):
    stopped = []

    def interrupted(running):
        stopped.extend(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs("slow", "a"), [], 2, str, tmp_path)
    assert len(stopped) == 2
    assert all(process.poll() is not None for process in stopped)


def child_of(parent):
    printed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout.split()
    return int(printed[0]) if printed else None


def alive(pid):
    printed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(printed) and not printed.startswith("Z")  # a zombie is dead, though nobody has waited for it


def test_a_killed_sweep_ends_its_run_and_goes_on(tmp_path):
    arguments = ("--experiment=mqar", f"--base={SMOKE}", "--grid=model=mosaic", f"--workdir={tmp_path}")
    process = subprocess.Popen(command("sweep", *arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 500
    while not (tmp_path / "mosaic" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None, "the sweep ended before it was killed"
        time.sleep(0.01)
    child = child_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert child is not None
    while alive(child):
        assert time.monotonic() < deadline, "the run goes on without its sweep"
        time.sleep(0.1)
    done = run("sweep", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs: 1, finished before: 0" in done.stdout
    assert "1/1  mosaic: validation accuracy 0." in done.stdout
    assert {"figure.png", "figure.pdf", "results.md"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base=none.flags", "--grid=seed=0"], "--base=none.flags cannot be read"),
        ([], "--grid is needed"),
        (["--norun"], "holds no results of regbench"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, arguments, message):
    assert message in refused("sweep", f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run").exists()
