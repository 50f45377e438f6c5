"""No work twice: a training whose result is there is found, whoever asks; and never one that is another, or damaged."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

import rco
from rco.config.branches import Comparison
from rco.config.shape import labels
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.tasks.check import check
from rco.tasks.teacher import train_teacher
from rco.tasks.validate import shape_of
from rco.tracking.record import Record, Row
from rco.training import distillation, identity, results
from rco.training import teacher as teaching
from rco.training.results import Result, Training
from tests.in_process import Branch, Walk

TINY = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 3,
    "teacher_batch_size": 512,
    "checkpoint_every": 1,
    "epochs": 4,
    "batch_size": 512,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "workers": 0,
    "probe_size": 64,
}
ONE_STAGE = {"strategy": "explicit", "anchor_epochs": [3], "epochs": 2}
#: From 8 channels of 8x8 to 16 of 4x4: an objective with weights of its own.
HINT = {"student": "digits-cnn-s", "objective": "hint", "student_tap": "stage1", "teacher_tap": "stage2"}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results are kept, as by the local runner."""
    monkeypatch.setenv("RCO_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really trained so far: "teacher", "stage 1"; tests clear it."""
    happened: list[str] = []
    train_stage, train_teacher = distillation.train_stage, teaching.train_teacher

    def stage(*args: Any, **kwargs: Any) -> Any:
        happened.append(f"stage {kwargs['stage']}")
        return train_stage(*args, **kwargs)

    def whole(*args: Any, **kwargs: Any) -> Any:
        happened.append("teacher")
        return train_teacher(*args, **kwargs)

    monkeypatch.setattr(distillation, "train_stage", stage)
    monkeypatch.setattr(teaching, "train_teacher", whole)
    return happened


def hashes(folder: Path) -> dict[str, str]:
    """Of all files but the record: it has times."""
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.name != "record.json"}


class Ran(Walk):
    """The tasks of a run, up to the trained student."""

    def __init__(self, folder: Path, digits: Path, **parameters: Any) -> None:
        super().__init__(folder, **{**TINY, **parameters})
        self.dataset = digits
        self.teach()
        self.record = self.walk()


class Compared:
    """The tasks of a comparison's one branch, up to the trained students."""

    def __init__(self, folder: Path, digits: Path, seeds: list[int], branch: str = "equal-interval", **more: Any) -> None:
        wanted = {**TINY, "n_anchors": 2, "branches": ["kd", branch], "seeds": seeds, **more}
        asked = Comparison.of(wanted)
        settings = check(asked.to_parameters(), compiled=shape_of(asked).steps)
        dataset, route, index = digits, folder / "route", folder / "index"
        train_teacher(settings["teacher"], dataset=dataset, route=route, route_index=index)
        walk = Branch(folder, settings, labels([branch])[branch], 1, dataset, route, index)
        walk.init()
        walk.select(1)
        self.folder = folder / "distilled"
        self.figures = walk.distil(1, self.folder)

    def student(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"


def timeless(record: Record) -> list[dict[str, Any]]:
    return [{**row, "time": 0, "metrics": {**row["metrics"], "images_per_second": 0}} for row in record.rows]


class TestFound:
    def test_more_seeds_train_those_alone(
        self, digits: Path, tmp_path: Path, trained: list[str], said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RCO_PIPELINE_RUN", "first")
        before = Compared(tmp_path / "before", digits, [0, 1])
        assert before.figures == {"branch": "equal-interval", "trained": 2}
        assert trained == ["teacher", *["stage 1", "stage 2"] * 2]
        assert "found" not in said()
        trained.clear()
        monkeypatch.setenv("RCO_PIPELINE_RUN", "second")
        after = Compared(tmp_path / "after", digits, [0, 1, 2])
        assert trained == ["stage 1", "stage 2"]
        assert after.figures == {"branch": "equal-interval", "trained": 1, "found": 2}
        lines = [line for line in said().splitlines() if "found, trained by" in line]
        assert len(lines) == 1 + 2 * 2
        assert lines[0].endswith("teacher digits-cnn-s: found, trained by run first: nothing is trained")
        assert lines[1].endswith(
            "equal-interval/seed-0, stage 1, anchor epoch 1: found, trained by run first: nothing is trained"
        )
        assert said().count("1 student trained, 2 found, 0 passed on") == 1
        for seed in (0, 1):
            assert hashes(before.student(seed)) == hashes(after.student(seed))
            assert (before.student(seed) / "record.json").read_text() == (after.student(seed) / "record.json").read_text()

    def test_a_run_finds_what_a_comparison_has_trained(self, digits: Path, tmp_path: Path, trained: list[str]) -> None:
        compared = Compared(tmp_path / "compared", digits, [0, 1])
        trained.clear()
        ran = Ran(tmp_path / "ran", digits, strategy="equal-interval", n_anchors=2, seed=1)
        assert trained == []
        assert hashes(ran.student) == hashes(compared.student(1))
        theirs = Record.read(compared.student(1))
        assert (ran.record.key, theirs.key) == ("student", "equal-interval/seed-1")
        assert "branch" in theirs.params
        assert "branch" not in ran.record.params
        assert ran.record.tags == {}, "names, parameters and tags are this run's own"
        assert ran.record.rows == theirs.rows, "with their times"
        assert ran.record.stages == theirs.stages
        assert ran.record.stages[0]["train_seconds"] > 0

    def test_another_delta_with_the_same_choice_trains_nothing(self, digits: Path, tmp_path: Path, trained: list[str]) -> None:
        greedy = {"strategy": "greedy", "n_anchors": 2}
        first = Ran(tmp_path / "first", digits, **greedy, delta=1.5)
        trained.clear()
        again = Ran(tmp_path / "again", digits, **greedy, delta=1.5000001)
        assert [stage["anchor_epoch"] for stage in again.record.stages] == [s["anchor_epoch"] for s in first.record.stages]
        assert trained == []
        assert hashes(again.student) == hashes(first.student)
        assert (first.record.params["anchors.delta"], again.record.params["anchors.delta"]) == (1.5, 1.5000001)
        trained.clear()
        Ran(tmp_path / "other", digits, strategy="explicit", anchor_epochs=[1, 3])
        assert "teacher" not in trained

    def test_what_is_found_is_what_would_be_trained(
        self, digits: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights of the student and of the objective, answers, route: to the last bit; and the epochs' figures."""
        wanted = {**HINT, "strategy": "explicit", "anchor_epochs": [1, 3]}
        Ran(tmp_path / "first", digits, **wanted)
        trained.clear()
        found = Ran(tmp_path / "found", digits, **wanted)
        assert trained == []
        monkeypatch.setenv("RCO_RESULTS", "")
        fresh = Ran(tmp_path / "fresh", digits, **wanted)
        assert trained == ["teacher", "stage 1", "stage 2"]
        assert set(hashes(found.student)) == {
            "student.safetensors",
            "probe.safetensors",
            "objective.safetensors",
            "inputs.json",
        }
        assert hashes(found.student) == hashes(fresh.student)
        probe, manifest = "probe.safetensors", "manifest.json"
        ours, theirs = ({**hashes(w.route), manifest: ""} for w in (found, fresh))
        assert ours == theirs
        assert {probe, "epoch-0001.safetensors", "epoch-0003.safetensors"} <= set(ours)
        assert timeless(found.record) == timeless(fresh.record)
        timed = {"train_seconds": 0}
        assert [{**s, **timed} for s in found.record.stages] == [{**s, **timed} for s in fresh.record.stages]

    def test_it_survives_the_resume_points_and_leaves_none(
        self, digits: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        points = tmp_path / "resume"
        monkeypatch.setenv("RCO_RESUME", str(points))
        monkeypatch.setenv("RCO_RESUME_RUN", "local")
        monkeypatch.setenv("RCO_RESUME_EVERY", "0")
        monkeypatch.setattr("rco.training.resume_points.ResumePoints.clear", lambda self: None)  # as of a task that was killed
        Ran(tmp_path / "first", digits, **ONE_STAGE)
        assert list(points.rglob("point-*"))
        trained.clear()
        Ran(tmp_path / "second", digits, **ONE_STAGE)
        assert not list(points.rglob("point-*")), "what is found need not go on"
        Ran(tmp_path / "third", digits, **ONE_STAGE)
        assert trained == []


class TestAnotherOneIsTrained:
    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        """What the software is, is looked at once a process."""
        identity.software.cache_clear()
        yield
        identity.software.cache_clear()

    @pytest.mark.parametrize("what", ["threads", "objective", "torch", "loss", "model's code", "plug-in", "hardware"])
    def test_where_the_numbers_may_differ(
        self, digits: Path, tmp_path: Path, trained: list[str], what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Ran(tmp_path / "first", digits, **ONE_STAGE)
        expected, more = ["teacher", "stage 1"], {}
        match what:
            case "threads":
                more = {"threads": 2}
            case "objective":
                more, expected = {"tau": 3.0}, ["stage 1"]
            case "torch":
                version = metadata.version
                monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == "torch" else version(name))
            case "loss":
                copy = tmp_path / "rco"
                shutil.copytree(Path(rco.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
                loss = copy / "objectives" / "stage.py"
                loss.write_text(loss.read_text() + "\n")
                monkeypatch.setattr(rco, "__file__", str(copy / "__init__.py"))
            case "model's code":
                monkeypatch.setattr("rco.tasks.preflight.code_digest", lambda name: "edited")
            case "plug-in":
                monkeypatch.setattr("rco.tasks.stage.used_by", lambda *groups: {"objective mine": "mine 2"})
                expected = ["stage 1"]
            case "hardware":
                monkeypatch.setattr("rco.training.device.hardware", lambda compute: "another")
        identity.software.cache_clear()
        trained.clear()
        Ran(tmp_path / "second", digits, **{**ONE_STAGE, **more})
        assert trained == expected

    def test_what_trains_has_no_other_names(self, digits: Path, tmp_path: Path, store: Path) -> None:
        Ran(tmp_path, digits, **ONE_STAGE, experiment="mine", registered_model="theirs")
        for manifest in store.glob("*/manifest.json"):
            assert not any(word in manifest.read_text() for word in ("mine", "theirs", "delta", "strategy", "reason"))


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 16]) + content[-8:])


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the student": lambda f: _flip(next(f.glob("*-student.safetensors"))),
    "half the student": lambda f: next(f.glob("*-student.safetensors")).write_bytes(b"x"),
    "no probe": lambda f: next(f.glob("*-probe.safetensors")).unlink(),
    "a bit of a figure": lambda f: _flip(next(f.glob("*-training.json"))),
    "no training": lambda f: next(f.glob("*-training.json")).unlink(),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "an empty manifest": lambda f: (f / "manifest.json").write_bytes(b""),
    "half a manifest": lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:200]),
    "another's manifest": lambda f: _edit(f / "manifest.json", lambda m: m["identity"].update(student="0")),
    "fewer files": lambda f: _edit(f / "manifest.json", lambda m: m["files"].pop("student.safetensors")),
    "other files": lambda f: _edit(f / "manifest.json", lambda m: m["files"].update({"../../x": "0" * 64})),
    "no sha256": lambda f: _edit(f / "manifest.json", lambda m: m["files"].update({"student.safetensors": "../x"})),
}


class TestDamage:
    @pytest.mark.parametrize("how", DAMAGE)
    def test_it_is_computed_anew(
        self, digits: Path, tmp_path: Path, store: Path, trained: list[str], said: Callable[[], str], how: str
    ) -> None:
        first = Ran(tmp_path / "first", digits, **ONE_STAGE)
        (folder,) = (f for f in store.iterdir() if json.loads((f / "manifest.json").read_text())["kind"] == "stage")
        DAMAGE[how](folder)
        trained.clear()
        second = Ran(tmp_path / "second", digits, **ONE_STAGE)
        assert trained == ["stage 1"]
        assert ("it is computed anew" in said()) == (how != "no manifest")
        assert hashes(second.student) == hashes(first.student)
        assert [path.name for path in (tmp_path / "second").iterdir() if path.name.startswith(".")] == []
        trained.clear()
        third = Ran(tmp_path / "third", digits, **ONE_STAGE)
        assert trained == [], "it is whole again"
        assert hashes(third.student) == hashes(first.student)

    def test_a_route_too(self, digits: Path, tmp_path: Path, store: Path, trained: list[str]) -> None:
        first = Ran(tmp_path / "first", digits, **ONE_STAGE)
        _flip(next(store.glob("*/*-epoch-0001.safetensors")))
        trained.clear()
        second = Ran(tmp_path / "second", digits, **ONE_STAGE)
        assert trained == ["teacher"]
        assert {**hashes(second.route), "manifest.json": ""} == {**hashes(first.route), "manifest.json": ""}

    @pytest.mark.parametrize("writes", range(4))
    def test_an_interrupted_write_leaves_nothing_that_is_used(
        self, tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, result = _made(tmp_path / "made"), _result()
        count, upload = 0, results.upload

        def dying(path: Path, uri: str) -> None:
            nonlocal count
            if count == writes:
                raise KeyboardInterrupt
            count += 1
            upload(path, uri)

        monkeypatch.setattr(results, "upload", dying)
        with pytest.raises(KeyboardInterrupt):
            result.store(made, TOLD)
        assert result.find(tmp_path / "out", lambda folder, training: None) is None
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr(results, "upload", upload)
        result.store(made, TOLD)
        assert result.find(tmp_path / "out", lambda folder, training: None) == TOLD
        assert hashes(tmp_path / "out") == hashes(made)

    @pytest.mark.parametrize("writes", range(4))
    def test_a_full_disk_stops_nothing_and_holds_no_room(
        self, tmp_path: Path, store: Path, writes: int, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, result = _made(tmp_path / "made"), _result()
        count, upload = 0, results.upload

        def full(path: Path, uri: str) -> None:
            nonlocal count
            if count == writes:
                raise OSError(errno.ENOSPC, "No space left on device")
            count += 1
            upload(path, uri)

        monkeypatch.setattr(results, "upload", full)
        result.store(made, TOLD)
        assert "it: the result was not kept (OSError: [Errno 28] No space left on device); the work goes on" in said()
        assert not [path for path in store.rglob("*") if path.is_file()]

    def test_a_training_goes_on_where_nothing_can_be_kept(
        self, digits: Path, tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("RCO_RESULTS", str(tmp_path / "file"))
        assert Ran(tmp_path / "ran", digits, **ONE_STAGE).record.stages
        assert said().count("the result was not kept") == 2

    def test_what_a_check_refuses_is_not_used(self, tmp_path: Path) -> None:
        result = _result()
        result.store(_made(tmp_path / "made"), TOLD)

        def refuse(folder: Path, training: Training) -> None:
            raise InputError("result", 1, "is wrong", "")

        assert result.find(tmp_path / "out", refuse) is None


TOLD = Training(pipeline_run="r", mlflow_run="", rows=(Row(step=1, time=1, metrics={"loss": 0.1}),))
NAMES = ("a.safetensors", "b.safetensors")


def _result() -> Result:
    return Result("stage", {"settings": 1}, NAMES, label="it")


def _made(folder: Path) -> Path:
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode() * 100)
    return folder


class TestTwoAtOnce:
    def test_one_of_them_stays_and_is_whole(self, tmp_path: Path) -> None:
        """Each tells other times, and on a GPU other weights."""
        folders = [tmp_path / str(i) for i in range(4)]
        for i, folder in enumerate(folders):
            (_made(folder) / NAMES[0]).write_bytes(bytes([i]) * 1000)
        told = [Training(pipeline_run=str(i), mlflow_run="", rows=TOLD.rows) for i in range(4)]
        wrong: list[object] = []

        def write(i: int) -> None:
            for _ in range(10):
                _result().store(folders[i], told[i])

        def read(i: int) -> None:
            for turn in range(10):
                out = tmp_path / f"out-{i}-{turn}"
                found = _result().find(out, lambda folder, training: None)
                if found is not None and hashes(out) != hashes(folders[int(found.pipeline_run)]):
                    wrong.append(found)

        _result().store(folders[0], told[0])
        threads = [threading.Thread(target=act, args=(i,)) for i in range(4) for act in (write, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        found = _result().find(tmp_path / "last", lambda folder, training: None)
        assert found in told


class TestPlaces:
    def test_in_a_bucket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> None:
        for name, value in (("ACCESS_KEY_ID", "nobody"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("RCO_RESULTS", "s3://bucket/points/results")
        made = _made(tmp_path / "made")
        with mock_aws():
            s3 = boto3.client("s3")
            s3.create_bucket(Bucket="bucket")
            assert _result().find(tmp_path / "none", lambda folder, training: None) is None
            _result().store(made, TOLD)
            keys = [o["Key"] for o in s3.list_objects_v2(Bucket="bucket")["Contents"]]
            assert {key.rsplit("/", 1)[0] for key in keys} == {_result().folder.removeprefix("s3://bucket/")}
            assert _result().find(tmp_path / "out", lambda folder, training: None) == TOLD
            assert hashes(tmp_path / "out") == hashes(made)
            student = next(key for key in keys if key.endswith(NAMES[0]))
            s3.put_object(Bucket="bucket", Key=student, Body=b"another")
            assert _result().find(tmp_path / "again", lambda folder, training: None) is None
            assert "it is computed anew" in said()

    def test_no_address_with_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RCO_RESULTS", "s3://key:secret@bucket/results")
        with pytest.raises(InputError, match="holds credentials") as caught:
            _result()
        assert "secret@" not in str(caught.value)

    def test_nothing_is_kept_unless_asked_for_and_check_says_so_once(
        self, tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parameters = {**TINY, **ONE_STAGE}
        for value, times in (("results", 0), ("", 0), (None, 1)):
            if value is None:
                monkeypatch.delenv("RCO_RESULTS")
            else:
                monkeypatch.setenv("RCO_RESULTS", value)
            check(parameters, compiled={"student": 1})
            assert said().count("RCO_RESULTS is not set: what another run has trained is not found") == times
        result = _result()
        result.store(_made(tmp_path / "made"), TOLD)
        assert result.find(tmp_path / "out", lambda folder, training: None) is None

    def test_the_manifest_says_what_it_is(self, digits: Path, tmp_path: Path, store: Path) -> None:
        Ran(tmp_path / "ran", digits, **ONE_STAGE)
        manifests = [json.loads(path.read_text()) for path in store.glob("*/manifest.json")]
        assert {m["kind"]: m["label"] for m in manifests} == {
            "route": "teacher digits-cnn-s",
            "stage": "student digits-mlp, stage 1",
        }
        assert all(isinstance(m["created"], float) for m in manifests)
        assert {path.suffix for path in store.rglob("*") if path.is_file()} == {".json", ".safetensors"}
