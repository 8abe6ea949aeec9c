"""metrics.jsonl and TensorBoard over restarts."""

import subprocess
import sys

import pytest
from tensorboardX.proto import event_pb2

from benchmarks import board
from mosaics_jax.errors import UserError
from mosaics_jax.training.metrics import MetricsWriter, read_metrics


def write(workdir, resume_step, steps):
    writer = MetricsWriter(workdir, resume_step)
    for step in steps:
        writer.write(step, "train", {"loss": 1.0 / step}, board=step % 2 == 0)
    writer.write(steps[-1], "eval", {"loss": 0.5})
    writer.write(steps[-1], "sample", {"text": "Once"})
    writer.flush()
    writer.close()


def test_a_restart_leaves_no_gap_and_no_double(tmp_path):
    write(tmp_path, 0, range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "kind": "tr')  # killed in the middle of a line
    write(tmp_path, 5, range(6, 11))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, 11))
    assert [record["step"] for record in records if record["kind"] == "eval"] == [10]
    assert [record["text"] for record in records if record["kind"] == "sample"] == ["Once"]
    assert records[0]["loss"] == 1.0
    assert all(record["time"] > 1e9 for record in records)


def test_tensorboard_is_told_to_forget_the_steps_made_again(tmp_path):
    write(tmp_path, 0, range(1, 8))
    first = set((tmp_path / "tensorboard").iterdir())
    write(tmp_path, 5, range(6, 11))
    (path,) = set((tmp_path / "tensorboard").iterdir()) - first
    found = list(board.events(path))
    assert [event.step for event in found if event.session_log.status == event_pb2.SessionLog.START] == [6]
    points = [(event.step, value.tag) for event in found for value in event.summary.value]
    assert points == [
        (6, "train/loss"), (8, "train/loss"), (10, "train/loss"), (10, "eval/loss"), (10, "sample/text/text_summary"),
    ]  # fmt: skip


def test_the_points_after_a_restart_and_of_a_record_cut_short(tmp_path):
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 5, range(6, 11))
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name.rpartition(".")[2])
    newest.write_bytes(newest.read_bytes()[:-3])  # of the sample
    assert board.points(tmp_path) == {
        "train/loss": [(step, pytest.approx(1 / step)) for step in (2, 4, 6, 8, 10)],
        "eval/loss": [(10, 0.5)],
    }


def test_reading(tmp_path):
    assert read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n')
    assert read_metrics(tmp_path) == read_metrics(path) == [{"step": 1, "kind": "train"}]
    path.write_text('{"step": 1, "kind": "train"}\nhello\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(UserError, match="line 2: not a metrics record"):
        read_metrics(path)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "metrics.jsonl.tmp").mkdir()
    with pytest.raises(UserError, match="cannot write metrics"):
        MetricsWriter(tmp_path)


def test_pytorch_is_not_imported_for_tensorboard(tmp_path):
    (tmp_path / "torch.py").write_text("Tensor = None\n")
    found = "import sys; import mosaics_jax.training; assert 'torch' not in sys.modules; import torch; torch.Tensor"
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {found}"]
    ended = subprocess.run(run, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
