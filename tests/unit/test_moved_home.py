"""What a home that was moved does to MLflow's database and to the reports that wait."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from rco.core import home as homes
from rco.core.errors import InputError
from rco.tracking import moved

TABLES = {table: [column for t, column in moved._ADDRESSES if t == table] for table, _ in moved._ADDRESSES}


def made(root: Path) -> Path:
    """A home whose database has addresses in it, of a neighbour with a similar name, and of S3."""
    root.mkdir()
    inside = (root / "artifacts").as_uri()
    with sqlite3.connect(root / "mlflow.db") as connection:
        for table, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            for address in (inside, f"{inside}/run/artifacts", f"{inside}-2/run", "s3://bucket/run", "models:/m-1", None):
                connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' for _ in columns)})", [address] * len(columns))
    connection.close()
    homes.remember(root)
    return root


def addresses(root: Path) -> list[str | None]:
    connection = sqlite3.connect(root / "mlflow.db")
    found = [
        row[0] for table, columns in TABLES.items() for c in columns for row in connection.execute(f"SELECT {c} FROM {table}")
    ]
    connection.close()
    return found


def expected(old: Path, new: Path) -> list[str | None]:
    one = [f"{new.as_uri()}/artifacts", f"{new.as_uri()}/artifacts/run/artifacts", f"{old.as_uri()}/artifacts-2/run"]
    return [*one, "s3://bucket/run", "models:/m-1", None] * len(moved._ADDRESSES)


@pytest.mark.parametrize("name", ["new place", "home/deeper", "%41", "ho'me", "é"])
def test_addresses_in_the_home_are_rewritten_and_no_others(tmp_path: Path, name: str) -> None:
    old = made(tmp_path / "home")
    assert moved.settle(old) is None
    new = tmp_path / name
    old.rename(tmp_path / "moving")
    new.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moving").rename(new)
    for _ in range(2):  # and it was cut short before it was noted
        assert moved.settle(new) == old
        assert addresses(new) == expected(old, new)
        (new / "home.json").write_text(json.dumps({"path": str(old)}))
    moved.settle(new)
    assert moved.settle(new) is None


@pytest.mark.parametrize("copy", [shutil.copy2, os.link], ids=["copy", "hard links"])
def test_the_original_of_a_copy_is_untouched(tmp_path: Path, copy: object) -> None:
    old, new = made(tmp_path / "home"), tmp_path / "copy"
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    shutil.copytree(old, new, copy_function=copy)
    assert moved.settle(new) == old
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert addresses(new) == expected(old, new)
    assert moved.settle(old) is None


def test_a_home_of_before_it_remembered(tmp_path: Path) -> None:
    new = made(tmp_path / "home").rename(tmp_path / "new")
    (new / "home.json").unlink()
    for run, home in (("local-1", "/elsewhere"), ("local-2", str(tmp_path / "home"))):
        (new / "runs" / run).mkdir(parents=True)
        (new / "runs" / run / "request.json").write_text(json.dumps({"home": home}))
    assert moved.settle(new) == tmp_path / "home"
    assert addresses(new) == expected(tmp_path / "home", new)


def test_one_place_with_two_paths_is_not_changed_under_a_run(tmp_path: Path) -> None:
    home = made(tmp_path / "home")
    (home / "home.json").write_text(json.dumps({"path": "/mnt/home"}))
    (home / "runs" / "local-1").mkdir(parents=True)
    before = addresses(home)
    with (
        homes.running(home / "runs" / "local-1"),
        pytest.raises(InputError, match="is also /mnt/home, and a run is in progress there"),
    ):
        moved.settle(home)
    assert addresses(home) == before
    assert moved.settle(home) == Path("/mnt/home")


def test_a_database_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = made(tmp_path / "home").rename(tmp_path / "new")

    def refuse(*arguments: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(moved, "_rewrite", refuse)
    with pytest.raises(InputError, match=r"home when it was last used, .* \(attempt to write a readonly database\)"):
        moved.settle(new)


def test_what_waits_for_the_old_database_waits_for_the_new_one(tmp_path: Path) -> None:
    old = made(tmp_path / "home")
    for run, uri in (("a", moved.database_uri(old)), ("b", "https://mlflow.example.com")):
        (old / "runs" / run / "report" / "outbox").mkdir(parents=True)
        (old / "runs" / run / "report" / "outbox" / "outbox.json").write_text(json.dumps({"tracking_uri": uri}))
    new = old.rename(tmp_path / "new")
    moved.settle(new)
    meant = [json.loads(file.read_text())["tracking_uri"] for file in sorted(new.glob("runs/*/report/outbox/outbox.json"))]
    assert meant == [moved.database_uri(new), "https://mlflow.example.com"]


def test_what_is_no_home_is_left_alone(tmp_path: Path) -> None:
    assert moved.settle(tmp_path) is None
    assert moved.settle(tmp_path / "nowhere") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"path": 3}', '{"path": "here"}', '{"path": null}'])
def test_a_damaged_note_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "home.json").write_text(content)
    assert moved.settle(tmp_path) is None
    homes.remember(tmp_path)
    assert homes.remembered(tmp_path) == tmp_path
