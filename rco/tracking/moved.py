"""A home that was moved or copied: MLflow's database has the full paths of its artifacts, and gets those of the new place.

The home remembers where it was (`rco.core.home`). Whoever uses it first in another place writes the new paths, all in one
transaction, into this home's own database: of a copy, the original is not touched.

    python -m rco.tracking.moved HOME     does it where nothing else of this project would: for `make ui`
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
from functools import partial
from pathlib import Path

from rco.core import home as homes
from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.files import atomically

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
_OUTBOXES = f"{homes.RUNS}/*/report/outbox/outbox.json"
#: Where MLflow keeps addresses of artifacts.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def settle(home: Path) -> Path | None:
    """Have MLflow's paths in a home be those of the place where it is; returns where it was, if it was elsewhere.

    Raises:
        InputError: a run is in progress in it under the other path (it is mounted twice), or it cannot be written.
    """
    home = home.resolve()
    if homes.remembered(home) in (None, home):
        return None
    try:
        with homes.locked(home, alone=True):
            old = homes.remembered(home)
            if old is None or old == home:  # another process was first
                return None
            if homes.in_progress(home):
                raise InputError("home", str(home), f"is also {old}, and a run is in progress there", "Wait for its end")
            _rewrite(home / DATABASE, (old / ARTIFACTS).as_uri(), (home / ARTIFACTS).as_uri())
            for outbox in home.glob(_OUTBOXES):
                _readdress(outbox, database_uri(old), database_uri(home))
            homes.remember(home)  # last: what was cut short is done again
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            "home",
            str(home),
            f"was {old_place(home)} when it was last used, and MLflow's paths in it cannot be changed ({reason})",
            "See to its permissions and its disk",
        ) from None
    return old


def old_place(home: Path) -> str:
    """Where a home was, for messages."""
    return str(homes.remembered(home) or "elsewhere")


def database_uri(home: Path) -> str:
    """The tracking server of a home."""
    return f"sqlite:///{home}/{DATABASE}"


def deleted_runs(home: Path) -> int:
    """How many runs MLflow keeps that were deleted in it."""
    with contextlib.suppress(sqlite3.Error):  # there is no database, or none with tables
        address = (home / DATABASE).as_uri() + "?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=10)) as connection:
            return int(connection.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'deleted'").fetchone()[0])
    return 0


def _rewrite(database: Path, old: str, new: str) -> None:
    if not database.is_file():
        return
    if database.stat().st_nlink > 1:  # a copy by hard links: SQLite would write into the original
        atomically(database, partial(shutil.copyfile, database))
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in _ADDRESSES:
            if table in tables:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                    f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"old": old, "new": new},
                )


def _readdress(outbox: Path, old: str, new: str) -> None:
    """What waits for the old place's database waits for this one's."""
    with contextlib.suppress(InputError):  # damaged: whoever delivers it says so
        document = read_json(outbox)
        if isinstance(document, dict) and document.get("tracking_uri") == old:
            write_json(outbox, {**document, "tracking_uri": new})


if __name__ == "__main__":
    try:
        settle(Path(sys.argv[1]))
    except InputError as problem:
        sys.exit(f"rco: {problem}")
