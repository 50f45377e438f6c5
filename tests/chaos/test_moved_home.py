"""A home that is copied, moved, cleaned: models load, the cache hits, and a run after any cleaning gives the same weights."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from rco.core import home as homes
from rco.core.files import sha256_of
from tests import zygote
from tests.local_runs import ONE_STAGE, Ran, client, flags, tiny, tracking_uri

pytestmark = pytest.mark.usefixtures("_zygote")
CACHED = {"prepare-data", "init-students", "train-teacher", "select-anchors", "distill-students", "evaluate-students"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def first(place: Path) -> Ran:
    return Ran(place / "home", **ONE_STAGE)


def weights(home: Path) -> str:
    return sha256_of(home / "last-run" / "student" / "student.safetensors")


def removed(home: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["clean", "--home", str(home), *words, "--yes"])
    assert done.exit_code == 0, done.output
    return done.output


def loads_everything(home: Path, summary: dict[str, Any]) -> None:
    """The registered student, as ours and as MLflow's, the anchors, and what a run has logged."""
    import mlflow
    import numpy as np

    import rco

    assert rco.load("models:/rco-student/1", tracking_uri=tracking_uri(home)) is not None
    c = client(home)
    served = mlflow.pyfunc.load_model("models:/rco-student/1")
    assert served.predict(np.zeros((2, 1, 8, 8), np.float32)).shape == (2, 10)
    anchors = c.search_logged_models([c.get_experiment_by_name("rco").experiment_id], "model_type = 'anchor'")
    assert anchors
    for anchor in anchors:
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{anchor.model_id}"))
        assert folder.is_relative_to(home)
        assert sha256_of(folder / "anchor.safetensors") == anchor.tags["rco.sha256"]
    assert {a.path for a in c.list_artifacts(summary["parent_run_id"], "report")} >= {"report/report.html"}


def mentions(home: Path, path: Path) -> list[str]:
    """What MLflow's database says of a path."""
    connection = sqlite3.connect(home / "mlflow.db")
    found = [line for line in connection.iterdump() if f"{path}/" in line]
    connection.close()
    return found


def test_a_copy_works_by_itself_and_the_original_is_untouched(place: Path, first: Ran) -> None:
    original, copy = first.home, place / "a copy"
    before = (original / "mlflow.db").read_bytes()
    shutil.copytree(original, copy, symlinks=True)
    shutil.move(original, place / "away")  # so that nothing of it is used unseen
    try:
        loads_everything(copy, first.summary)
        assert (copy / "last-run" / "report.html").is_file()
        again = Ran(copy, **ONE_STAGE)
    finally:
        shutil.move(place / "away", original)
    assert again.cached == CACHED
    assert again.summary["registered"] == first.summary["registered"]
    assert weights(copy) == weights(original)
    assert not mentions(copy, original)
    assert (original / "mlflow.db").read_bytes() == before
    shutil.rmtree(copy)


def test_a_moved_home_goes_on_where_it_is(place: Path, first: Ran) -> None:
    old, new = first.home, place / "moved" / "home"
    expected = weights(old)
    new.parent.mkdir()
    old.rename(new)
    again = Ran(new, **ONE_STAGE)
    assert again.lines[0] == f"this home was {old} when it was last used: MLflow's paths in it are those of {new} now"
    assert again.cached == CACHED
    assert weights(new) == expected
    loads_everything(new, first.summary)
    loads_everything(new, again.summary)
    assert not mentions(new, old)
    assert not old.exists()
    first.home = new


def test_a_run_after_any_cleaning_is_the_same(first: Ran) -> None:
    expected = weights(first.home)
    removed(first.home, "--keep-last", "0")
    removed(first.home, "--older-than", "0h", "--what", "logits,resume,results")
    assert Ran(first.home, **ONE_STAGE).cached == CACHED
    assert weights(first.home) == expected
    removed(first.home, "--older-than", "0h")
    assert not list((first.home / "pipeline").iterdir())
    loads_everything(first.home, first.summary)
    assert Ran(first.home, **ONE_STAGE).cached == set()
    assert weights(first.home) == expected


def test_a_run_after_half_a_cache_is_gone_is_the_same(first: Ran) -> None:
    """An output that its entry misses, by whomever it was removed: the task computes it anew, and so does what follows."""
    expected = weights(first.home)
    (job,) = (job for job in (first.home / "pipeline").iterdir() if (job / "train-teacher").is_dir())
    shutil.rmtree(job / "train-teacher" / "route_index")
    assert Ran(first.home, **ONE_STAGE).cached == {"prepare-data", "init-students"}
    assert weights(first.home) == expected


def test_cleaning_under_a_run_takes_nothing_that_it_needs(first: Ran) -> None:
    expected = weights(first.home)
    for entry in (first.home / "cache").iterdir():
        if "init-students" not in entry.read_text():
            entry.unlink()
    process = zygote.cli("run", "--home", str(first.home), *flags(tiny(**ONE_STAGE)))
    deadline = time.monotonic() + 120
    while not homes.in_progress(first.home):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cleanings = 0
    while homes.in_progress(first.home):
        removed(first.home, "--older-than", "0h")
        cleanings += 1
        time.sleep(0.1)
    said = process.communicate()
    assert process.returncode == 0, said
    assert cleanings > 3
    assert weights(first.home) == expected
