"""A full disk is named as such, whichever library met it. The real thing: tests/chaos."""

from __future__ import annotations

import errno
import logging
import sqlite3
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rco.core.errors import DiskFullError, disk_full
from rco.tasks.process import TASKS, log, task


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/nowhere/at/all/file"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_every_library_s_words_for_it(error: Exception, tmp_path: Path) -> None:
    full = disk_full(error, [tmp_path / "not" / "there"])
    assert isinstance(full, DiskFullError)
    assert Path(full.folder).is_dir()
    assert "no space is left" in str(full)
    assert full.folder in str(full)


def test_a_cause_is_found_below_what_it_was_wrapped_in() -> None:
    wrapper = RuntimeError("writing failed")
    wrapper.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_full(wrapper, []) is not None


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("28"), RuntimeError()])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert disk_full(error, ["/"]) is None


def test_a_task_says_it_in_one_line_for_people(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fills_the_disk(*, output: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(output / "x"))

    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    wrapped = task(fills_the_disk)
    with pytest.raises(DiskFullError):
        wrapped(output=tmp_path)
    del TASKS[fills_the_disk.__name__]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("disk full: no space is left")
    assert str(tmp_path) in said
