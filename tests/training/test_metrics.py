"""metrics.jsonl and TensorBoard's event files, also of a run that is resumed."""

import time

import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.training.metrics import MetricsWriter, read_metrics
from mosaics_jax.training.tensorboard import EventFile, masked_crc, read_events, read_points

TAGS = ("train/loss", "eval/loss", "sample/text/text_summary")
RECORDED = (
    "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b3531100f000000000000006d53"
    "2b090900002040fc54d94110083a020801b9c5b1b12100000000000000017becf60900002040fc54d94110ac022a130a110a"
    "0a747261696e2f6c6f737315cdcccc3d2e3967e51d00000000000000602fdf230900002040fc54d9412a120a100a09657661"
    "6c2f6c6f73731500000000a634038f51000000000000009ca1d9bc0900002040fc54d94110ac022a430a410a1873616d706c"
    "652f746578742f746578745f73756d6d617279421b080712041202080142114f6e63652075706f6e20c3a42074696d654a08"
    "0a060a0474657874eca347ed"
)


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


def test_tensorboard_drops_the_steps_that_are_repeated(tmp_path):
    write(tmp_path, 0, range(1, 8))
    first = set((tmp_path / "tensorboard").iterdir())
    write(tmp_path, 5, range(6, 11))
    (path,) = set((tmp_path / "tensorboard").iterdir()) - first
    version, start, *points = read_events(path)
    assert version[3] == b"brain.Event:2" and (start[2], start[7]) == (6, b"\x08\x01")
    tags = [(event[2], tag) for event in points for tag in TAGS if tag.encode() in event[5]]
    assert tags == [
        (6, "train/loss"), (8, "train/loss"), (10, "train/loss"), (10, "eval/loss"), (10, "sample/text/text_summary"),
    ]  # fmt: skip


def test_event_files_are_those_of_tensorboardx(tmp_path, monkeypatch):
    """Byte for byte what tensorboardX 2.6 wrote for the same events: framing, checksums and messages."""
    monkeypatch.setattr(time, "time", lambda: 1700000000.5)
    events = EventFile(tmp_path / "new", "7")
    events.drop_from(8)
    events.add(300, "train/loss", 0.1)
    events.add(0, "eval/loss", 0.0)
    events.add(300, "sample/text", "Once upon ä time")
    events.close()
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("events.out.tfevents.1700000000.") and path.name.endswith(".7")
    assert path.read_bytes().hex() == RECORDED
    assert read_points(tmp_path / "new") == {"train/loss": [(300, pytest.approx(0.1))], "eval/loss": [(0, 0.0)]}
    path.write_bytes(path.read_bytes().replace(b"Once", b"once"))
    with pytest.raises(ValueError, match="checksum"):
        list(read_events(path))


def test_checksum_is_crc_32c():
    crc = 0xE3069283  # RFC 3720 and its kin give this value for "123456789"
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def test_the_points_after_a_restart_and_of_a_record_cut_short(tmp_path):
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 5, range(6, 11))
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name.rpartition(".")[2])
    newest.write_bytes(newest.read_bytes()[:-3])  # the end of the sample
    assert read_points(tmp_path / "tensorboard") == {
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
