"""The work directory: refused if it cannot be used, locked by one run at a time."""

import os

import pytest

from mosaics_jax.errors import UserError
from mosaics_jax.runtime.workdir import check_workdir, locked
from mosaics_jax.training import train


def test_directories_that_cannot_be_used(tiny, tmp_path, monkeypatch):
    def message(workdir):
        with pytest.raises(UserError) as error:
            train(workdir, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
        return str(error.value)

    file = tmp_path / "file"
    file.write_text("mine")
    assert "is not a directory" in message(file)
    assert f"{file} is not a directory" in message(file / "run")
    assert "not a URL" in message("gs://bucket/run")
    assert "/proc/run: No such file or directory" in message("/proc/run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert "no permission to write" in message(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def test_one_run_at_a_time(tiny, tmp_path):
    with (
        locked(check_workdir(tmp_path)),
        pytest.raises(UserError, match="another process trains in"),
    ):
        train(tmp_path, tiny.LOOP, tiny.OPTIMIZER, tiny.make_task())
    assert list(tmp_path.iterdir()) == []
