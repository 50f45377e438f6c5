"""`rco clean`: what goes, what stays, and what comes in between."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import clean as command
from pipelines.cli.main import main
from pipelines.local import clean
from pipelines.local import run as outer
from pipelines.local.clean import Wanted, remove
from pipelines.local.holdings import holdings
from rco.core import home as homes

DAY = 86400
KEY, OTHER = "a" * 64, "b" * 64
JOB = "pipeline/job-1"


def aged(path: Path, days: float) -> None:
    """Make everything below `path` as old as that."""
    then = time.time() - days * DAY
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then), follow_symlinks=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With three runs, two cached tasks, one that is not cached, a result, logits and resume points; 40 days old but for the
    third run and the second cached task."""
    root = (tmp_path / "home").resolve()
    for run in ("local-20260101-000000-a", "local-20260201-000000-b", "local-20260301-000000-c"):
        (root / "runs" / run / "report").mkdir(parents=True)
        (root / "runs" / run / "request.json").write_text(json.dumps({"home": str(root)}))
        (root / "runs" / run / "pipeline.log").write_text("said\n")
    for task, key in (("train-teacher", KEY), ("distill-stage", OTHER), ("report", None)):
        (root / JOB / task / "route").mkdir(parents=True)
        (root / JOB / task / "route" / "weights").write_bytes(b"0" * 1000)
        if key:
            (root / "cache").mkdir(exist_ok=True)
            entry = {"route": {"__kfp_artifact__": True, "uri": f"job-1/{task}/route"}}
            (root / "cache" / f"{key}.json").write_text(json.dumps(entry))
    for file in (
        f"results/{'d' * 32}/manifest.json",
        f"logits/{'c' * 32}.safetensors",
        f"images/{'e' * 32}/files/cat/0.png",
        f"resume/local/train_teacher/4f/point-00001-000002-{'d' * 64}.safetensors",
        "data/cifar/batch.bin",
        "weights/resnet18-f37072fd.pth",
        "artifacts/run/model",
    ):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_bytes(b"1" * 100)
    homes.remember(root)
    (root / "last-run").symlink_to("runs/local-20260301-000000-c/report")
    aged(root, 40)
    aged(root / "runs" / "local-20260301-000000-c", 1)
    aged(root / "cache" / f"{OTHER}.json", 1)
    return root


def files(home: Path) -> set[str]:
    found = (path for path in home.rglob("*") if path.is_file() and path.name not in (".home.lock", "in-progress"))
    return {path.relative_to(home).as_posix() for path in found}


def rco(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["clean", *map(str, words)])


def gone(home: Path, *words: str) -> set[str]:
    before = files(home)
    dry = rco("--home", home, *words, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert files(home) == before, "a dry run removes nothing"
    done = rco("--home", home, *words, "--yes")
    assert done.exit_code == 0, done.output
    assert not list(home.rglob(clean.ASIDE))
    went = before - files(home)
    for name in went:
        assert any(part.as_posix() in dry.output for part in Path(name).parents) or name.startswith("cache/"), "it was listed"
    return {name.split("/")[0] + "/" + name.split("/")[1][:16] for name in went}


RUN_A, RUN_B = "runs/local-20260101-0", "runs/local-20260201-0"
OLD_CACHE = {f"cache/{KEY[:16]}", "pipeline/job-1"}
OLD_REST = {f"results/{'d' * 16}", f"logits/{'c' * 16}", f"images/{'e' * 16}", "resume/local"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--older-than", "30d"], {RUN_A, RUN_B, *OLD_CACHE, *OLD_REST}),
        (["--older-than", "8w"], set()),
        (["--older-than", "30d", "--keep-last", "2"], {RUN_A, *OLD_CACHE, *OLD_REST}),
        (["--keep-last", "1"], {RUN_A, RUN_B}),
        (["--keep-last", "0"], {RUN_A, RUN_B}),  # the third is last-run
        (["--older-than", "12h", "--what", "cache"], {*OLD_CACHE, f"cache/{OTHER[:16]}"}),
        (["--older-than", "30d", "--what", "logits, resume"], {f"logits/{'c' * 16}", "resume/local"}),
    ],
)
def test_what_is_asked_for_goes_and_nothing_else(home: Path, words: list[str], expected: set[str]) -> None:
    names = {name[:21] if name.startswith("runs") else name for name in expected}
    assert gone(home, *words) == names
    assert (home / "data/cifar/batch.bin").is_file()
    assert (home / "weights/resnet18-f37072fd.pth").is_file()
    assert (home / "artifacts/run/model").is_file()
    assert (home / "last-run").is_dir()


def test_an_entry_and_its_outputs_go_together(home: Path) -> None:
    gone(home, "--older-than", "30d", "--what", "cache")
    assert files(home / "cache") == {f"{OTHER}.json"}
    assert files(home / JOB) == {"distill-stage/route/weights"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--older-than", "month"], "older_than = 'month': is not an age. Write it as 12h, 30d or 8w: hours, days or weeks"),
        (["--older-than", "30"], "is not an age"),
        (["--older-than", "30d"], "yes = False: nobody can be asked here. Add --yes, or --dry-run"),
        (["--older-than", "30d", "--what", "runs,data"], "what = 'data': is nothing that can be removed"),
        (["--what", "logits"], "does not say what of it is to go"),
        (["--keep-last", "3", "--what", "logits"], "keep_last = 3: is of runs alone"),
        (["--yes"], "older_than = None: is needed to remove anything"),
    ],
)
def test_what_cannot_be_meant_is_refused(home: Path, words: list[str], said: str) -> None:
    before = files(home)
    done = rco("--home", home, *words)
    assert done.exit_code == 2
    assert said in done.output
    assert files(home) == before


def test_a_folder_that_is_no_home_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "mine").mkdir(parents=True)
    done = rco("--home", tmp_path, "--older-than", "0h", "--yes")
    assert done.exit_code == 2
    assert "is not a folder that local runs have used" in done.output
    assert rco("--home", tmp_path / "nowhere").exit_code == 2


def test_a_home_is_shown(home: Path) -> None:
    with sqlite3.connect(home / "mlflow.db") as connection:
        connection.execute("CREATE TABLE runs (lifecycle_stage TEXT)")
        connection.execute("INSERT INTO runs VALUES ('deleted'), ('active')")
    done = rco("--home", home)
    assert done.exit_code == 0
    (line,) = (line.split() for line in done.output.splitlines() if line.startswith("cache"))
    assert line[1:4] == ["3", "3.1", "KiB"]
    assert "what 1 runs have that were deleted in it; this removes it:\nmlflow gc --backend-store-uri sqlite:///" in done.output
    told = json.loads(rco("--home", home, "--json").output)
    assert {kind: of["count"] for kind, of in told["holds"].items()} == {
        **{"runs": 3, "cache": 3, "results": 1, "logits": 1, "images": 1, "resume": 1},
        **{"data": 1, "weights": 1, "MLflow": 1, "other": 1},
    }
    every = sum(path.lstat().st_size for path in home.rglob("*") if path.is_symlink() or path.is_file())
    assert sum(of["bytes"] for of in told["holds"].values()) == every
    told = json.loads(rco("--home", home, "--json", "--older-than", "30d", "--what", "logits", "--yes").output)
    assert told["removed"][0]["paths"] == [f"logits/{'c' * 32}.safetensors"]
    assert told["troubles"] == []


def test_a_run_in_progress_keeps_what_it_has_made_or_found(home: Path) -> None:
    run = home / "runs" / "local-20260101-000000-a"
    with homes.running(run):
        assert set(homes.in_progress(home)) == {run.name}
        os.utime(home / "cache" / f"{KEY}.json")  # found in the cache
        fresh = home / JOB / "distill-stage-2"
        (fresh / "distilled").mkdir(parents=True)  # being made
        time.sleep(0.02)
        done = rco("--home", home, "--older-than", "0h", "--yes")
        assert done.exit_code == 0, done.output
        assert "runs/local-20260101-000000-a (it is in progress)" in done.output
        assert f"{JOB}/train-teacher (a run in progress may use it)" in done.output
        assert {path.name for path in (home / JOB).iterdir()} == {"train-teacher", "distill-stage-2"}
        assert files(home / "cache") == {f"{KEY}.json"}
        assert not (home / "results" / ("d" * 32)).exists()
        assert run.is_dir()
    assert homes.in_progress(home) == {}
    assert rco("--home", home, "--older-than", "0h", "--yes").exit_code == 0
    assert not run.exists()
    assert not (home / JOB).exists()


def test_a_report_that_waits_stays(home: Path) -> None:
    outbox = home / "runs" / "local-20260101-000000-a" / "report" / "outbox"
    outbox.mkdir()
    (outbox / "outbox.json").write_text("{}")
    assert gone(home, "--keep-last", "1") == {RUN_B}
    assert outbox.is_dir()


def test_nothing_outside_is_touched(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in ("logits", "runs", "deep", "outputs"):
        (outside / name).mkdir(parents=True)
        (outside / name / f"{'c' * 32}.safetensors").write_text("mine")
        (outside / name / "request.json").write_text("{}")
    before = files(outside)
    (home / "logits").rename(home / "logits-as-it-was")
    (home / "logits").symlink_to(outside / "logits")
    (home / "runs" / "local-20250101-000000-z").symlink_to(outside / "runs")
    (home / "runs" / "local-20260101-000000-a" / "link").symlink_to(outside / "deep")
    escape = {"route": {"uri": f"../../../outside/{'x'}"}, "other": {"uri": str(outside / "outputs" / "request.json")}}
    (home / "cache" / f"{KEY}.json").write_text(json.dumps(escape))
    aged(home, 40)
    done = rco("--home", home, "--older-than", "0h", "--yes")
    assert done.exit_code == 0, done.output
    assert files(outside) == before
    assert not (home / "runs" / "local-20260101-000000-a").exists()
    assert not (home / "cache" / f"{KEY}.json").exists()


def test_cut_short_at_any_moment_it_leaves_nothing_half(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Wanted.of("30d", None, None)
    assert wanted

    class KilledError(BaseException):
        pass

    moves = 0
    rename = Path.rename

    def counted(path: Path, target: Path) -> Path:
        nonlocal moves
        if moves == 0:
            raise KilledError
        moves -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", counted)
    for allowed in (1, 0, 2):
        moves = allowed
        with pytest.raises(KilledError):
            remove(home, wanted)
        for entry in (home / "cache").glob("*.json"):
            (output,) = json.loads(entry.read_text()).values()
            assert (home / "pipeline" / output["uri"] / "weights").is_file(), "an entry has its outputs, whole"
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(clean, "_delete", lambda folder, troubles: exec("raise KilledError", {"KilledError": KilledError}))
    with pytest.raises(KilledError):
        remove(home, wanted)
    monkeypatch.undo()
    assert list(home.rglob(clean.ASIDE))
    assert remove(home, wanted).troubles == []
    assert not list(home.rglob(clean.ASIDE))
    assert files(home / "cache") == {f"{OTHER}.json"}


def test_two_at_once(home: Path) -> None:
    for number in range(60):
        (home / "logits" / f"{number:032x}.safetensors").write_text("1")
    aged(home / "logits", 40)
    wanted = Wanted.of("30d", None, None)
    assert wanted
    done: list[clean.Removed] = []
    threads = [threading.Thread(target=lambda: done.append(remove(home, wanted))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.troubles for each in done] == [[]] * 4
    names = [thing.name for each in done for thing in each.things]
    assert len(names) == len(set(names)) == 60 + 1 + 1 + 2 + 2 + 2
    assert not wanted.choose(holdings(home))[0]


def test_who_may_not_is_told_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def denied(path: Path, target: Path) -> Path:
        if "local-20260101" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", denied)
    done = rco("--home", home, "--keep-last", "1", "--yes")
    assert done.exit_code == 1
    assert "local-20260101-000000-a cannot be removed (Permission denied): see to its owner and permissions" in done.output
    assert "removed 1 thing, " in done.output

    def refuse(home: Path, alone: bool) -> None:
        raise PermissionError(13, "Permission denied", str(home / ".home.lock"))

    monkeypatch.setattr(homes, "locked", refuse)
    done = rco("--home", home, "--keep-last", "1", "--yes")
    assert done.exit_code == 1
    assert ".home.lock cannot be used (Permission denied)" in done.output


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 1), ("n\n", 1, 3)])
def test_in_a_terminal_it_asks_once(home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, left: int) -> None:
    monkeypatch.setattr(command, "_can_ask", lambda: True)
    done = CliRunner().invoke(main, ["clean", "--home", str(home), "--keep-last", "1"], input=answer)
    assert done.exit_code == status, done.output
    assert done.output.count("Remove this?") == 1
    assert len(list((home / "runs").glob("local-*"))) == left


def test_a_run_that_begins_waits_for_the_end_of_a_cleaning(home: Path) -> None:
    began = threading.Event()

    def begin() -> None:
        with outer._begun(home, home / "runs" / "local-20260401-000000-d", lambda line: None):
            began.set()

    with homes.locked(home, alone=True):
        thread = threading.Thread(target=begin)
        thread.start()
        assert not began.wait(0.2)
    thread.join()
    assert began.is_set()
