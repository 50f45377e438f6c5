"""An entry of the local cache is used if all that it names is there, whole; else the task runs again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.local import cache

from pipelines.local.work import _cache_by_content

KEY = "0" * 64


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """The cache of a home."""
    monkeypatch.setattr(cache, "LocalCache", cache.LocalCache)  # as it was, afterwards

    def opened(home: Path) -> Any:
        monkeypatch.undo()
        monkeypatch.setattr(cache, "LocalCache", cache.LocalCache)
        _cache_by_content(home)
        return cache.LocalCache(str(home / "cache"))

    return opened


@pytest.fixture
def home(tmp_path: Path, opened: Callable[[Path], Any]) -> Path:
    """A home with an entry: a task's figure and its model, of two files."""
    home = tmp_path / "home"
    model = home / "pipeline" / "task" / "route"
    (model / "deeper").mkdir(parents=True)
    (model / "manifest.json").write_text("{}")
    (model / "deeper" / "weights").write_bytes(b"0" * 1000)
    opened(home).put(KEY, {"accuracy": 0.5, "route": dsl.Model(name="route", uri=str(model), metadata={})})
    return home


def test_what_is_whole_is_used_wherever_the_home_is(home: Path, opened: Callable[[Path], Any]) -> None:
    found = opened(home).get(KEY)
    assert (found["accuracy"], found["route"].uri) == (0.5, str(home / "pipeline" / "task" / "route"))
    moved = home.rename(home.with_name("moved"))
    assert opened(moved).get(KEY)["route"].uri == str(moved / "pipeline" / "task" / "route")
    (moved / "pipeline" / "task" / "route" / "more").touch()  # what a later task has left there
    assert opened(moved).get(KEY) is not None


@pytest.mark.parametrize("harm", ["file", "cut", "folder"])
def test_what_was_deleted_by_hand_is_computed_anew(home: Path, harm: str, opened: Callable[[Path], Any]) -> None:
    model = home / "pipeline" / "task" / "route"
    if harm == "file":
        (model / "deeper" / "weights").unlink()
    elif harm == "cut":
        (model / "deeper" / "weights").write_bytes(b"0" * 999)
    else:
        model.rename(model.with_name("elsewhere"))
    assert opened(home).get(KEY) is None


DAMAGED = [
    b"",
    b"[]",
    b"7",
    b"\xff\xfe",
    b'{"route": {"__kfp_artifact__": true}}',
    b'{"route": {"__kfp_artifact__": true, "uri": 5}}',
]
DAMAGED += [b'{"route": {"__kfp_artifact__": true, "uri": "task/route", "sizes": [1]}}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_entry_is_none(home: Path, content: bytes, opened: Callable[[Path], Any]) -> None:
    (home / "cache" / f"{KEY}.json").write_bytes(content)
    assert opened(home).get(KEY) is None


def test_entries_of_before_sizes_were_written(home: Path, opened: Callable[[Path], Any]) -> None:
    entry = home / "cache" / f"{KEY}.json"
    document = json.loads(entry.read_text())
    assert document["route"].pop("sizes") == {"manifest.json": 2, "deeper/weights": 1000}
    entry.write_text(json.dumps(document))
    assert opened(home).get(KEY) is not None
