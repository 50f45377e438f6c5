"""Interrupted trainings end as if nothing had happened, to the last bit; what was kept is never used if it could be wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws
from torch import Tensor, nn

import rco
from rco.config.branches import Comparison
from rco.core.documents import write_json
from rco.core.errors import DivergenceError, InputError
from rco.core.files import sha256_of
from rco.core.storage import retries
from rco.core.tensors import load_state, save_state
from rco.data.dataset import Dataset
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.models.weights import state_digest
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss, labels_only
from rco.strategies.config import AnchorConfig
from rco.tasks import students, teacher
from rco.tasks.check import check
from rco.tasks.process import main
from rco.tasks.report import close_run
from rco.tracking import epochs
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.training import identity, resume
from rco.training.config import TrainConfig
from rco.training.distillation import ProbeTargets, distill_route, train_stage
from rco.training.loop import fit
from rco.training.resume_points import ResumePoints
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.in_process import Branch, Walk

TEACHER = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
STUDENT = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
TRAIN = TrainConfig.of(epochs=3, batch_size=512, lr=0.05, milestones=(0.34, 0.67), augment="shift")
NEVER = 1e9


@pytest.fixture(scope="module")
def route(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    list(train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=folder))
    return Route.open(folder)


class KilledError(BaseException):
    """Nothing may catch it, as with SIGKILL."""


class Mortal(ResumePoints):
    """Dies after so many points, or as the file of one is written."""

    lives = 10**9

    def keep(self) -> None:
        super().keep()
        self.lives -= 1
        if self.lives == 0:
            raise KilledError


class Recorder(ResumePoints):
    """Puts a copy of its folder aside after every point: every moment at which the training could have been killed."""

    def keep(self) -> None:
        super().keep()
        self.moments = [*getattr(self, "moments", ()), Path(f"{self.folder}-{len(getattr(self, 'moments', ()))}")]
        shutil.copytree(self.folder, self.moments[-1])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def points_in(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("point-*"))


def every_interruption(train: Callable[[ResumePoints, Path], tuple[list[dict[str, Any]], Any]], folder: Path) -> int:
    """Train to the end, then again from every moment at which a point was written; returns how many those were.

    Args:
        train: is given a checkpointer and a new folder to work in; returns rows, and what came out.
    """
    rows, expected = train(ResumePoints("", {}), folder / "whole")
    recorder = Recorder(str(folder / "points"), {"of": "test"}, every=0, files=folder / "recorded")
    watched, result = train(recorder, folder / "recorded")
    assert (timeless(watched), result) == (timeless(rows), expected), "keeping points changes nothing"
    for moment in recorder.moments:
        work = Path(f"{moment}-work")
        again, result = train(ResumePoints(str(moment), {"of": "test"}, every=NEVER, files=work), work)
        assert result == expected, f"from {points_in(moment)}"
        assert timeless(again) == timeless(rows)[len(rows) - len(again) :]
    return len(recorder.moments)


class TestEveryInterruption:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_of_a_teacher(self, data: Dataset, tmp_path: Path, optimizer: str) -> None:
        """The files of the route are the same, to the byte: weights, logits, manifest."""
        config = TRAIN.with_values(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 1e-3)

        def train(checkpointer: ResumePoints, folder: Path) -> tuple[list[dict[str, Any]], Any]:
            rows = list(train_teacher(data, TEACHER, config, CPU, checkpoint_every=1, folder=folder, checkpointer=checkpointer))
            return rows, hashes(folder)

        assert every_interruption(train, tmp_path) == 9

    @pytest.mark.parametrize(
        ("objective", "train", "precision"),
        [
            (ObjectiveConfig(), {}, "fp32"),
            (ObjectiveConfig(), {"optimizer": "adamw", "lr": 1e-3, "augment": "none"}, "fp32"),
            (ObjectiveConfig(), {"augment": "resized-crop-flip", "schedule": "cosine", "warmup_epochs": 0.5}, "fp32"),
            (ObjectiveConfig(views=2), {}, "fp32"),
            (ObjectiveConfig.of(objective="hint", student_tap="2", teacher_tap="input:classifier"), {}, "fp32"),
            (ObjectiveConfig.of(objective="dkd"), {}, "bf16"),
        ],
        ids=["sgd", "adamw", "resized-cosine", "views", "hint", "bf16"],
    )
    def test_of_a_stage(
        self, data: Dataset, route: Route, tmp_path: Path, objective: ObjectiveConfig, train: dict[str, Any], precision: str
    ) -> None:
        from rco.objectives.make import make_objective

        config = TRAIN.with_values(**train)
        compute = dataclasses.replace(CPU, precision=precision)
        _, logits = route.probe()

        def run(checkpointer: ResumePoints, folder: Path) -> tuple[list[dict[str, Any]], Any]:
            student = STUDENT.build(0)
            anchor = load_network(route.folder / route.checkpoints[1].file)
            loss = make_objective(objective, student, anchor, data.manifest.image_shape, seed=config.seed)
            stage = train_stage(
                student,
                anchor,
                data,
                objective,
                config,
                compute,
                ProbeTargets(logits[1], logits[2]),
                stage=2,
                epochs=3,
                first_epoch=4,
                loss=loss,
                checkpointer=checkpointer,
            )
            return list(stage), (state_digest(student), state_digest(loss))

        assert every_interruption(run, tmp_path) == 9

    def test_of_a_network_that_draws_random_numbers(self, data: Dataset, tmp_path: Path) -> None:
        def run(checkpointer: ResumePoints, folder: Path) -> tuple[list[dict[str, Any]], Any]:
            torch.manual_seed(0)
            network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
            torch.rand(len(str(folder)))  # the state of the generator at the start is no part of it
            rows = list(fit(network, data.split("train"), labels_only(), TRAIN, CPU, epochs=3, checkpointer=checkpointer))
            return rows, state_digest(network)

        assert every_interruption(run, tmp_path) == 9

    @pytest.mark.parametrize(
        "anchors",
        [
            AnchorConfig.of(strategy="greedy", delta=1.01, n_anchors=2),
            AnchorConfig.of(strategy="explicit", anchor_epochs=(1, 2, 3)),
        ],
        ids=["greedy", "explicit"],
    )
    def test_of_a_walk_along_a_route(self, data: Dataset, route: Route, tmp_path: Path, anchors: AnchorConfig) -> None:
        """Anchors chosen before the interruption stay chosen; regressor and student go from stage to stage."""
        objective = ObjectiveConfig.of(objective="hint", student_tap="2", teacher_tap="input:classifier")
        config = TRAIN.with_values(epochs=4, milestones=(0.5,))

        def run(checkpointer: ResumePoints, folder: Path) -> tuple[list[dict[str, Any]], Any]:
            student = STUDENT.build(0)
            walk = distill_route(
                student, route, data, anchors=anchors, objective=objective, train=config, compute=CPU, checkpointer=checkpointer
            )
            return list(walk), state_digest(student)

        assert every_interruption(run, tmp_path) == 12

    def test_leaves_out_what_was_seen(self, data: Dataset) -> None:
        for more in ({"augment": "shift"}, {"augment": "crop-flip", "view": 3}, {"augment": "none"}):
            options = {"seed": 5, "epoch": 2, **more}
            whole = list(data.split("train").indexed_batches(300, **options))
            for skip in range(len(whole) + 1):
                rest = list(data.split("train").indexed_batches(300, skip=skip, **options))
                assert len(rest) == len(whole) - skip
                for (x, y, rows), (x2, y2, rows2) in zip(rest, whole[skip:], strict=True):
                    assert torch.equal(x, x2)
                    assert torch.equal(y, y2)
                    assert (rows == rows2).all()


class TestLibrary:
    def test_the_same_call_goes_on(
        self, data: Dataset, tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compute = {"compute": CPU}
        whole = rco.train_route(data, "digits-cnn-s", tmp_path / "whole", train=TRAIN, checkpoint_every=1, **compute)
        student, rows = rco.distill_student("digits-mlp", whole, data, train=TRAIN, **compute)

        def interrupted(call: Callable[[], Any]) -> Any:
            with monkeypatch.context() as patched:
                patched.setattr("rco.api.ResumePoints", lambda *a, **k: Mortal(*a, every=0, **k))
                patched.setattr(Mortal, "lives", 5)
                with pytest.raises(KilledError):
                    call()
            assert len(points_in(tmp_path / "points")) == 2
            result = call()
            assert "going on from epoch 2, step 2 (resume point of " in said()
            assert not (tmp_path / "points").exists(), "what has ended well is cleared up"
            return result

        options = {"train": TRAIN, "resume": tmp_path / "points", **compute}
        again = interrupted(lambda: rco.train_route(data, "digits-cnn-s", tmp_path / "again", checkpoint_every=1, **options))
        assert hashes(again.folder) == hashes(whole.folder)
        twin, all_rows = interrupted(lambda: rco.distill_student("digits-mlp", whole, data, **options))
        assert same(twin.state_dict(), student.state_dict())
        assert timeless(all_rows) == timeless(rows), "rows from before the interruption are there too"


def trained(data: Dataset, checkpointer: ResumePoints, epochs: int = 2, **more: Any) -> nn.Module:
    network = STUDENT.build(0)
    list(
        fit(
            network,
            data.split("train"),
            labels_only(),
            TRAIN.with_values(**more),
            CPU,
            epochs=epochs,
            checkpointer=checkpointer,
        )
    )
    return network


@pytest.fixture
def place(data: Dataset, tmp_path: Path) -> Path:
    """Two points of a training that was killed after four steps of six."""
    checkpointer = Mortal(str(tmp_path / "points"), {"lr": 1}, every=0)
    checkpointer.lives = 4
    with pytest.raises(KilledError):
        trained(data, checkpointer)
    return tmp_path / "points"


class TestPoints:
    def test_two_are_kept_and_named_by_where_they_are(self, place: Path) -> None:
        names = points_in(place)
        assert [name.split("-")[1:3] for name in names] == [["00002", "000000"], ["00002", "000001"]]
        for name in names:
            assert sha256_of(place / name) in name
        assert [path.name for path in place.iterdir() if path.name not in names] == []

    def test_is_plain_to_read(self, place: Path) -> None:
        """Tensors by name and JSON: no tool of ours is needed."""
        from safetensors import safe_open

        with safe_open(place / points_in(place)[-1], framework="pt") as file:
            names, document = set(file.keys()), json.loads(file.metadata()["rco"])
        assert {f"training/learner/model.{name}" for name in STUDENT.build().state_dict()} <= names
        assert document["parts"]["training"]["progress"]["epoch"] == 2
        assert document["identity"]["lr"] == 1

    def test_other_users_of_a_shared_folder_can_read_them(self, place: Path) -> None:
        assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o644}

    def test_a_disk_that_cannot_be_read_now_does_not_throw_them_away(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(path: Path) -> str:
            raise OSError(errno.EIO, "Input/output error", str(path))

        before = points_in(place)
        with monkeypatch.context() as patch:
            patch.setattr("rco.core.files.sha256_of", broken)
            with pytest.raises(InputError, match=r"cannot be read \(Input/output error\).*run again"):
                ResumePoints(str(place), {"lr": 1})
        assert points_in(place) == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("random", None),
            ("random", {"cpu": torch.zeros(3)}),
            ("progress", {"epoch": "1"}),
            ("progress", {"epoch": 1000}),
            ("progress", {"epoch": 1, "batches": -1}),
            ("progress", {"epoch": 1, "names": ["loss"], "sums": torch.zeros(2), "finite": torch.zeros(1)}),
            ("progress", []),
            ("learner", {}),
            ("optimizer", {"0": {"momentum_buffer": torch.zeros(1)}}),
            ("optimizer", {"x": {}}),
        ],
    )
    def test_a_point_whose_values_are_not_of_this_training_is_refused(self, data: Dataset, name: str, value: Any) -> None:
        checkpointer = ResumePoints("", {})
        trained(data, checkpointer)
        state = {part: make() for part, make in checkpointer._makers.items()}["training"]

        class Hostile(ResumePoints):
            def take(self, part: str) -> Any:
                changed = {key: old for key, old in state.items() if key != name} if value is None else {**state, name: value}
                return changed if part == "training" else None

        with pytest.raises(InputError, match=r"of another training|do not fit|lacks"):
            trained(data, Hostile("", {}))

    def test_a_kill_leaves_a_launcher_what_it_knew(self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It asks how far the training is before it starts it again."""
        monkeypatch.setenv("RCO_PROGRESS", str(known := tmp_path / "progress"))
        points = ResumePoints(str(place), {"lr": 1}, every=NEVER)
        progress = {"epoch": 7, "batches": 0}
        points.add("training", lambda: {"progress": progress})
        points.keep()
        assert known.read_text() == f"{place} 7 0"

        def killed(path: Path, text: str) -> None:
            path.open("w").close()
            raise KilledError

        progress["epoch"] = 8
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", killed)
            with pytest.raises(KilledError):
                points.keep()
        assert points_in(place)[-1].startswith("point-00008")
        assert known.read_text() == f"{place} 7 0"

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing"])
    def test_if_the_newest_is_damaged_the_one_before_is_used(
        self, place: Path, data: Dataset, damage: str, said: Callable[[], str]
    ) -> None:
        harm(place / points_in(place)[-1], damage)
        checkpointer = ResumePoints(str(place), {"lr": 1}, every=NEVER)
        assert "going on from epoch 2, step 0 (resume point of " in said()
        assert ("cannot be used" in said()) == (damage != "missing")
        assert same(trained(data, checkpointer).state_dict(), trained(data, ResumePoints("", {})).state_dict())

    @pytest.mark.parametrize("damage", ["truncated", "flipped"])
    def test_if_both_are_damaged_the_training_starts_anew_and_says_so(
        self, place: Path, data: Dataset, damage: str, said: Callable[[], str]
    ) -> None:
        for name in points_in(place):
            harm(place / name, damage)
        checkpointer = Mortal(str(place), {"lr": 1}, every=0)
        assert "no resume point" in said()
        assert "starts anew" in said()
        checkpointer.lives = 3
        with pytest.raises(KilledError):
            trained(data, checkpointer)
        ResumePoints(str(place), {"lr": 1})
        assert "going on from epoch 2, step 0" in said(), "damaged points make room for sound ones, however far they were"

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_no_damage_is_ever_used(self, place: Path, draw: st.DataObject) -> None:
        name = points_in(place)[-1]
        content = bytearray((place / name).read_bytes())
        at = draw.draw(st.integers(0, len(content) - 1))
        if draw.draw(st.booleans()):
            content[at] ^= draw.draw(st.integers(1, 255))
        else:
            del content[at:]
        other = place.with_name("hurt")
        shutil.rmtree(other, ignore_errors=True)
        other.mkdir()
        (other / name).write_bytes(content)
        assert ResumePoints(str(other), {"lr": 1}).take("training") is None

    @pytest.mark.parametrize(
        "lie",
        [
            lambda document: document.pop("parts"),
            lambda document: document.update(parts=[]),
            lambda document: document.update(files={"../../escaped": "0" * 64}),
            lambda document: document.update(files={"a": "../../etc/passwd"}),
            lambda document: document.update(time="soon"),
            lambda document: document.update(files={"a": 1}),
            lambda document: document.update(files={"a\0b": "0" * 64}),
            lambda document: document["parts"].update(extra={"$tensor": "nowhere"}),
            lambda document: document["parts"].update(training=[]),
            lambda document: document["parts"]["training"].update(progress="far"),
        ],
    )
    def test_a_point_that_lies_is_not_used(self, place: Path, lie: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
        """Even with the right checksum in its name."""
        name = points_in(place)[-1]
        tensors, document = load_state(place / name)
        lie(document)
        other = tmp_path / "lying"
        other.mkdir()
        digest = save_state(other / "x", tensors, document)
        (other / "x").rename(other / f"point-00002-000001-{digest}.safetensors")
        assert ResumePoints(str(other), {"lr": 1}, files=tmp_path / "files").take("training") is None
        assert not (tmp_path.parent / "escaped").exists()
        assert not (tmp_path / "escaped").exists()

    @pytest.mark.parametrize(
        "lie",
        [
            lambda training: training.pop("optimizer"),
            lambda training: training["progress"].update(unknown=1),
            lambda training: training.update(learner={}),
            lambda training: training.update(optimizer={"99": {}}),
            lambda training: training["optimizer"]["0"].update(momentum_buffer=torch.zeros(3)),
        ],
    )
    def test_a_state_of_another_training_is_refused(
        self, place: Path, data: Dataset, lie: Callable[[dict[str, Any]], Any]
    ) -> None:
        checkpointer = ResumePoints(str(place), {"lr": 1})
        lie(checkpointer._found["training"])
        with pytest.raises(InputError, match="is of another training"):
            trained(data, checkpointer)

    def test_points_of_other_settings_or_code_are_refused(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(InputError, match=r"is of another training: lr was 1, is 2\. Name another place, or delete it"):
            ResumePoints(str(place), {"lr": 2})
        edited = {**identity.software(), "rco": "edited"}
        monkeypatch.setattr(identity, "software", lambda: edited)
        with pytest.raises(InputError, match=r"is of another training: software\.rco was"):
            ResumePoints(str(place), {"lr": 1})

    def test_a_teachers_files_come_back_and_a_damaged_one_makes_the_point_useless(
        self, data: Dataset, tmp_path: Path, said: Callable[[], str]
    ) -> None:
        checkpointer = Mortal(str(tmp_path / "points"), {}, every=0, files=tmp_path / "one")
        checkpointer.lives = 7
        with pytest.raises(KilledError):
            list(
                train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "one", checkpointer=checkpointer)
            )
        files = sorted((tmp_path / "points").glob("file-*"))
        assert len(files) == 2
        ResumePoints(str(tmp_path / "points"), {}, files=tmp_path / "two")
        assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
        later = sha256_of(tmp_path / "one" / "epoch-0002.safetensors")
        (tmp_path / "points" / f"file-{later}").write_bytes(b"damaged")
        anew = Mortal(str(tmp_path / "points"), {}, every=0, files=tmp_path / "three")
        assert "starts anew" in said()
        anew.lives = 7
        with pytest.raises(KilledError):
            list(train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "three", checkpointer=anew))
        ResumePoints(str(tmp_path / "points"), {}, files=tmp_path / "four")
        assert hashes(tmp_path / "four") == hashes(tmp_path / "one"), "the damaged file was written again"

    def test_what_cannot_be_written_is_a_warning(
        self, data: Dataset, tmp_path: Path, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("rco.training.resume_points.write_state", full)
        network = trained(data, ResumePoints(str(tmp_path / "points"), {}, every=0), epochs=1)
        assert "the resume point was not written (OSError: [Errno 28] No space left on device)" in said()
        assert same(network.state_dict(), trained(data, ResumePoints("", {}), epochs=1).state_dict())
        assert list((tmp_path / "points").iterdir()) == [], "nothing half-written is left"

    def test_what_a_killed_writer_left_is_removed(self, place: Path) -> None:
        old, fresh = place / ".point-old", place / ".point-fresh"
        for path in (old, fresh):
            path.write_bytes(b"half")
        os.utime(old, (0, 0))
        ResumePoints(str(place), {"lr": 1})
        assert not old.exists()
        assert fresh.exists(), "somebody may be writing it"

    def test_written_by_the_clock(self, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = iter(range(0, 10**6, 4))  # four seconds a look
        monkeypatch.setattr(resume.time, "monotonic", lambda: next(clock))
        checkpointer = Recorder(str(tmp_path / "points"), {}, every=10)
        trained(data, checkpointer)
        assert len(checkpointer.moments) == 2

    def test_two_at_once_do_not_disturb_each_other(self, data: Dataset, tmp_path: Path) -> None:
        """Both write into one folder, and one is ahead; whoever comes next finds a sound point of either."""
        folder = str(tmp_path / "points")
        ahead, behind = (fit_slowly(data, ResumePoints(folder, {}, every=0)) for _ in range(2))
        next(ahead), next(behind), next(ahead)  # epochs of three steps
        assert [name.split("-")[1] for name in points_in(folder)] == ["00002", "00002"]
        next(behind)
        (rows,) = ([*ahead],)
        assert [row["epoch"] for row in rows] == [3]
        checkpointer = ResumePoints(folder, {}, every=NEVER)
        assert same(
            trained(data, checkpointer, epochs=3).state_dict(), trained(data, ResumePoints("", {}), epochs=3).state_dict()
        )
        assert [row["epoch"] for row in behind] == [3]


def fit_slowly(data: Dataset, checkpointer: ResumePoints) -> Iterator[dict[str, float]]:
    return fit(STUDENT.build(0), data.split("train"), labels_only(), TRAIN, CPU, epochs=3, checkpointer=checkpointer)


def harm(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 16]) + content[-8:])


class TestObjectStore:
    @pytest.fixture
    def s3(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with mock_aws():
            client = boto3.client("s3")
            client.create_bucket(Bucket="bucket")
            yield client

    def names(self, s3: Any) -> list[str]:
        return [o["Key"] for o in s3.list_objects_v2(Bucket="bucket").get("Contents", ())]

    def test_a_teacher_goes_on_from_a_bucket(self, s3: Any, data: Dataset, route: Route, tmp_path: Path) -> None:
        checkpointer = Mortal("s3://bucket/points/here", {}, every=0, files=tmp_path / "one")
        checkpointer.lives = 7
        with pytest.raises(KilledError):
            list(
                train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "one", checkpointer=checkpointer)
            )
        assert [name.split("/")[-1].split("-")[0] for name in self.names(s3)] == ["file", "file", "point", "point"]
        again = ResumePoints("s3://bucket/points/here", {}, every=NEVER, files=tmp_path / "two")
        rows = list(train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "two", checkpointer=again))
        assert [row["epoch"] for row in rows] == [3]
        assert hashes(tmp_path / "two") == hashes(route.folder)
        again.clear()
        assert self.names(s3) == []

    def test_a_damaged_file_of_a_route_is_written_again(
        self, s3: Any, data: Dataset, route: Route, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retries, "_FIRST_WAIT", 0.0)
        checkpointer = Mortal("s3://bucket/points/here", {}, every=0, files=tmp_path / "one")
        checkpointer.lives = 7
        with pytest.raises(KilledError):
            list(
                train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "one", checkpointer=checkpointer)
            )
        damaged = next(name for name in self.names(s3) if "/file-" in name)
        about = s3.head_object(Bucket="bucket", Key=damaged)["Metadata"]
        s3.put_object(Bucket="bucket", Key=damaged, Body=b"something else", Metadata=about)
        again = ResumePoints("s3://bucket/points/here", {}, every=0, files=tmp_path / "two")
        list(train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=tmp_path / "two", checkpointer=again))
        assert hashes(tmp_path / "two") == hashes(route.folder)
        body = s3.get_object(Bucket="bucket", Key=damaged)["Body"].read()
        assert hashlib.sha256(body).hexdigest() in damaged

    def test_wrong_bytes_and_lost_objects_are_noticed(self, s3: Any, data: Dataset, said: Callable[[], str]) -> None:
        checkpointer = Mortal("s3://bucket/points", {}, every=0)
        checkpointer.lives = 2
        with pytest.raises(KilledError):
            trained(data, checkpointer)
        first, second = self.names(s3)
        s3.put_object(Bucket="bucket", Key=second, Body=b"something else")
        ResumePoints("s3://bucket/points", {})
        assert "going on from epoch 1, step 1" in said()
        s3.delete_object(Bucket="bucket", Key=first)
        assert ResumePoints("s3://bucket/points", {}).take("training") is None

    def test_a_store_that_is_away_is_no_reason_to_start_anew(
        self, s3: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpointer = Mortal("s3://bucket/points", {}, every=0)
        checkpointer.lives = 1
        with pytest.raises(KilledError):
            trained(data, checkpointer)

        def cut(uri: str, into: Path) -> Path:
            raise InputError("uri", uri, "cannot be reached", "Check the network")

        monkeypatch.setattr("rco.training.resume_points.fetch", cut)
        with pytest.raises(InputError, match="cannot be reached"):
            ResumePoints("s3://bucket/points", {})


class TestDivergence:
    def diverge(self, data: Dataset, epochs: int = 3, lr: float = 1e18, **more: Any) -> DivergenceError:
        """A loss of a part that turns bad at a step that the test knows."""
        with pytest.raises(DivergenceError) as caught:
            trained(data, ResumePoints("", {}), epochs=epochs, lr=lr, schedule="constant", **more)
        return caught.value

    @pytest.mark.parametrize("bad_step", [1, 3, 4, 5, 9])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_names_the_part_and_the_first_bad_step(self, data: Dataset, bad_step: int, value: float) -> None:
        class Trap(StageLoss):
            step = 0

            def forward(self, *args: Any) -> dict[str, Tensor]:
                self.step += 1
                parts = super().forward(*args)
                return {**parts, "trap": parts["label_loss"] * (value if self.step == bad_step else 0.0)}

        network = STUDENT.build(0)
        rows = fit(network, data.split("train"), Trap(ObjectiveConfig(lam="0")), TRAIN, CPU, epochs=3)
        seen: dict[int, dict[str, Tensor]] = {}

        def watch() -> None:
            for row in rows:
                seen[int(row["epoch"])] = {name: t.clone() for name, t in network.state_dict().items()}

        with pytest.raises(DivergenceError) as caught:
            watch()
        error = caught.value
        epoch, step = divmod(bad_step - 1, 3)
        assert (error.part, error.epoch, error.step) == ("trap", epoch + 1, step + 1)
        assert f"trap is not a finite number in epoch {epoch + 1} at step {step + 1} of 3 (learning rate " in str(error)
        assert "Lower lr or lengthen warmup_epochs, or give trap less weight" in str(error)
        if epoch:
            assert error.weights is not None
            assert same(dict(error.weights), seen[epoch])
            assert error.weights_of == f"after epoch {epoch}"
        else:
            assert error.weights is None

    def test_is_found_long_before_the_end_of_a_long_epoch(self, data: Dataset) -> None:
        steps = 0

        class Bad(StageLoss):
            def forward(self, *args: Any) -> dict[str, Tensor]:
                nonlocal steps
                steps += 1
                return {name: part * (float("nan") if steps == 7 else 1) for name, part in super().forward(*args).items()}

        config = dataclasses.replace(TRAIN, batch_size=2)
        with pytest.raises(DivergenceError, match="in epoch 1 at step 7 of "):
            list(fit(STUDENT.build(0), data.split("train"), Bad(ObjectiveConfig(lam="0")), config, CPU, epochs=1))
        assert steps == 100

    def test_weights_that_are_not_finite_are_not_handed_on(self, data: Dataset) -> None:
        """The last step may spoil the weights when every loss was a number."""

        class Spoilt(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                out = super().forward(x.flatten(1))
                out.register_hook(lambda gradient: gradient * float("inf"))
                return out

        config = dataclasses.replace(TRAIN, batch_size=2000)
        with pytest.raises(DivergenceError, match="a weight is not a finite number in epoch 1 at step 1 of 1"):
            list(fit(Spoilt(64, 10), data.split("train"), labels_only(), config, CPU, epochs=1))

    def test_no_bad_state_is_ever_kept(self, data: Dataset, tmp_path: Path) -> None:
        checkpointer = Recorder(str(tmp_path / "points"), {}, every=0)
        with pytest.raises(DivergenceError):
            trained(data, checkpointer, epochs=3, lr=1e18, schedule="constant")
        for moment in getattr(checkpointer, "moments", ()):
            for name in points_in(moment):
                tensors, _ = load_state(moment / name)
                assert all(torch.isfinite(t).all() for key, t in tensors.items() if key.startswith("training/learner"))


FLAT = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 3,
    "teacher_batch_size": 512,
    "checkpoint_every": 1,
    "epochs": 3,
    "batch_size": 512,
    "strategy": "explicit",
    "anchor_epochs": [3],
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "workers": 0,
    "probe_size": 64,
}


class Pipeline(Walk):
    """The first tasks of a run, by hand, as the components call them; each attempt has an output of its own."""

    def __init__(self, folder: Path, digits: Path, **parameters: Any) -> None:
        super().__init__(folder, **{**FLAT, **parameters})
        self.dataset = digits

    def teacher(self, attempt: str = "") -> dict[str, str]:
        self.route, self.index = self.folder / f"route{attempt}", self.folder / f"index{attempt}"
        self.teach()
        return hashes(self.route)

    def ready(self) -> None:
        self.route, self.index = self.folder / "route", self.folder / "index"
        self.init()
        self.select(1)

    def distilled(self, attempt: str = "") -> Path:
        self.distil(1, out := self.folder / f"distilled{attempt}")
        return out / "seed-0"


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says after how many points a task is killed."""
    monkeypatch.setattr(resume, "ResumePoints", Mortal)
    monkeypatch.setattr(Mortal, "left", 10**9, raising=False)

    def keep(self: Mortal) -> None:
        ResumePoints.keep(self)
        Mortal.left -= 1  # type: ignore[attr-defined]
        if Mortal.left == 0:  # type: ignore[attr-defined]
            raise KilledError

    monkeypatch.setattr(Mortal, "keep", keep)
    return lambda points: monkeypatch.setattr(Mortal, "left", points, raising=False)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Resume points are asked for, as the local runner does, after every step."""
    monkeypatch.setenv("RCO_RESUME", str(tmp_path / "resume"))
    monkeypatch.setenv("RCO_RESUME_RUN", "local")
    monkeypatch.setenv("RCO_RESUME_EVERY", "0")
    return tmp_path / "resume"


def step_values(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, metric)]


class TestTasks:
    def test_teacher_and_student_go_on_and_mlflow_has_every_epoch_once(
        self,
        digits: Path,
        tmp_path: Path,
        kept: Path,
        lives: Callable[[int], None],
        said: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("RCO_ARTIFACT_ROOT", (tmp_path / "artifacts").as_uri())
        monkeypatch.setattr(epochs, "FLUSH_SECONDS", 0.0)  # every epoch is sent at once: more than the last point knows
        monkeypatch.setattr(epochs, "SLOWDOWN", 0.0)
        whole = Pipeline(tmp_path / "whole", digits)
        routes = {"whole": whole.teacher()}
        whole.ready()
        students = {"whole": hashes(whole.distilled())}
        assert not [path for path in kept.rglob("*") if path.is_file()], "what has ended well is cleared up"
        monkeypatch.setenv("RCO_PIPELINE_RUN", "interrupted")
        broken = Pipeline(tmp_path / "broken", digits)
        lives(7)
        with pytest.raises(KilledError):
            broken.teacher("-1")
        lives(10**9)
        routes["broken"] = broken.teacher()
        assert "going on from epoch 3, step 1 (resume point of " in said()
        broken.ready()
        for attempt, points in (("-1", 4), ("-2", 3)):  # killed twice
            lives(points)
            with pytest.raises(KilledError):
                broken.distilled(attempt)
        lives(10**9)
        students["broken"] = hashes(broken.distilled())
        assert "going on from epoch 2, step 1" in said()
        assert "going on from epoch 3, step 1" in said()
        assert routes["whole"] == routes["broken"]
        for folder in students.values():
            folder.pop("record.json")
        assert students["whole"] == students["broken"]
        ours, theirs = (Record.read(tmp_path / who / "distilled" / "seed-0") for who in ("broken", "whole"))
        assert [row["step"] for row in ours.rows] == [1, 2, 3]
        for mine, its in zip(ours.rows, theirs.rows, strict=True):
            mine["metrics"].pop("images_per_second"), its["metrics"].pop("images_per_second")
            assert mine["metrics"] == its["metrics"]
        assert len(ours.stages) == 1
        context = Context.from_environment()
        client = context.client()
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.`rco.pipeline_run` = 'interrupted' AND tags.`rco.kind` = 'model'")
        by_key = {run.data.tags["rco.key"]: run for run in runs}
        for key, record in (("student", ours), ("teacher", Record.read(tmp_path / "broken" / "index"))):
            run = by_key[key]
            expected = [(row["step"], row["metrics"]["loss"]) for row in record.rows]
            assert step_values(client, run.info.run_id, "loss") == expected, "no gap, nothing twice"
            assert [step for step, _ in expected] == [1, 2, 3]
        assert by_key["student"].data.tags["rco.attempts"] == "3"

    def test_another_setting_does_not_go_on_and_says_why(
        self, digits: Path, tmp_path: Path, kept: Path, lives: Callable[[int], None], said: Callable[[], str]
    ) -> None:
        lives(2)
        with pytest.raises(KilledError):
            Pipeline(tmp_path / "one", digits).teacher()
        lives(10**9)
        Pipeline(tmp_path / "two", digits, teacher_lr=0.01).teacher()
        assert "is of another training and is not used: settings.train.lr was 0.05, is 0.01" in said()
        assert "going on" not in said()

    def test_points_of_one_pipeline_run_stay_until_it_has_ended_well(
        self,
        digits: Path,
        tmp_path: Path,
        kept: Path,
        said: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What a task has made may fail to reach the store; then the pod that is tried again has nothing to train."""
        monkeypatch.delenv("RCO_RESUME_RUN")
        monkeypatch.setenv("RCO_RESUME_EVERY", "1000")
        monkeypatch.setenv("RCO_PIPELINE_RUN", "one")
        pipeline = Pipeline(tmp_path, digits)
        first = pipeline.teacher("-1")
        assert pipeline.teacher() == first
        assert "going on from epoch 4, step 0" in said(), "there is nothing left to train"
        pipeline.ready()
        once, again = pipeline.distilled("-1"), pipeline.distilled()
        assert {**hashes(once), "record.json": ""} == {**hashes(again), "record.json": ""}
        assert len(Record.read(again).stages) == 1
        close_run(succeeded=False)
        there = sorted(kept.rglob("point-*"))
        assert {path.relative_to(kept).parts[:2] for path in there} == {("one", "train_teacher"), ("one", "distill_stage")}
        monkeypatch.setenv("RCO_PIPELINE_RUN", "two")
        close_run(succeeded=True)
        assert sorted(kept.rglob("point-*")) == there, "another run's"
        monkeypatch.setenv("RCO_PIPELINE_RUN", "one")
        close_run(succeeded=True)
        assert not list(kept.rglob("point-*"))

    def test_a_divergence_is_one_paragraph_and_does_not_repeat_itself(
        self, digits: Path, tmp_path: Path, kept: Path, said: Callable[[], str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        pipeline = Pipeline(tmp_path, digits, teacher_lr=1e3, teacher_warmup_epochs=1.3, teacher_batch_size=512)
        with pytest.raises(DivergenceError) as caught:
            pipeline.teacher()
        message = str(caught.value)
        assert message.startswith("teacher digits-cnn-s: ")
        assert "Lower teacher_lr or lengthen teacher_warmup_epochs" in message
        assert "diverged: teacher digits-cnn-s" in said()
        assert len(said().split("diverged: ")[1].strip().splitlines()) == 1
        if "The weights after epoch" in message:
            path = Path(message.split("are kept in ")[1].split(". The same")[0])
            good = load_network(path)
            assert all(torch.isfinite(p).all() for p in good.parameters())
        started = time.perf_counter()
        with pytest.raises(DivergenceError, match=r"An earlier attempt ended so.*Nothing was computed\. Change a setting"):
            pipeline.teacher("-2")
        assert time.perf_counter() - started < 60
        arguments = tmp_path / "arguments.json"
        paths = {name: str(tmp_path / name) for name in ("route", "route_index")}
        write_json(arguments, {"settings": pipeline.settings["teacher"], "dataset": str(digits), **paths})
        assert main(["train_teacher", str(arguments)]) == 1
        assert "Traceback" not in capsys.readouterr().err

    def test_a_gpu_gets_a_second_chance(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """There the same numbers may come out otherwise."""
        monkeypatch.setenv("RCO_RESUME", str(tmp_path))
        network = {"network": STUDENT.written}
        error = DivergenceError("loss", epoch=2, step=1, steps=3, lr=1.0, advice="Lower lr")
        for words in ("The same settings would", "The same settings would", "An earlier attempt ended so"):
            with (
                pytest.raises(DivergenceError, match=words),
                resume.resumable("t", {"settings": {"compute": {"device": "cuda"}}}, label="it", **network),
            ):
                raise error

    @pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
    def test_a_nonsensical_interval_is_refused(self, kept: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("RCO_RESUME_EVERY", value)
        with (
            pytest.raises(InputError, match=r"RCO_RESUME_EVERY = .*is not a number of minutes"),
            resume.resumable("t", {}, label="it", network={}),
        ):
            pass

    def test_nothing_is_kept_unless_asked_for(self, digits: Path, tmp_path: Path) -> None:
        with resume.resumable("t", {}, label="it", network={}) as points:
            assert not points.due()
            points.keep()
        assert points.take("training") is None
        assert list(tmp_path.iterdir()) == []


def test_a_branch_does_not_train_its_finished_seeds_again(
    digits: Path, tmp_path: Path, kept: Path, lives: Callable[[int], None], said: Callable[[], str]
) -> None:
    flat = {name: value for name, value in FLAT.items() if name not in ("strategy", "anchor_epochs")}
    asked = {**flat, "branches": ["kd", "equal-interval"], "n_anchors": 2, "epochs": 4, "seeds": [0, 1]}
    settings = check(Comparison.of(asked).to_parameters(), compiled={"kd": 1, "equal-interval": 1})
    route, index = tmp_path / "route", tmp_path / "index"
    teacher.train_teacher(settings["teacher"], dataset=digits, route=route, route_index=index)
    branch = Branch(tmp_path, settings, "equal_interval", 1, digits, route, index)
    branch.init()
    branch.select(1)

    def distil(name: str) -> dict[str, str]:
        branch.distil(1, tmp_path / name)
        return {f"{seed}": sha256_of(tmp_path / name / f"seed-{seed}" / students.STUDENT) for seed in (0, 1)}

    whole = distil("whole")
    assert not [path for path in kept.rglob("*") if path.is_file()]
    told = len(said())
    lives(2 * 7 + 4)  # seed 0: two stages of six steps, and their ends; then four steps of seed 1
    with pytest.raises(KilledError):
        distil("interrupted")
    lives(10**9)
    told = len(said())
    assert distil("again") == whole
    again = said()[told:]
    lines = [line.split("going on from ")[1].split(" (")[0] for line in again.splitlines() if "going on from " in line]
    assert lines == ["epoch 3, step 0", "epoch 5, step 0", "epoch 2, step 1"]
    assert "seed-0, stage 1, anchor" not in again, "no epoch of it was trained"
    for seed in (0, 1):
        ours, theirs = (Record.read(tmp_path / name / f"seed-{seed}") for name in ("again", "whole"))
        assert [row["step"] for row in ours.rows] == [row["step"] for row in theirs.rows] == [1, 2, 3, 4]
        assert [stage["stage"] for stage in ours.stages] == [1, 2]
    assert not [path for path in kept.rglob("*") if path.is_file()], "the finished task clears up"


class TestSweep:
    def aged(self, root: Path, name: str, days: float, size: int = 10) -> Path:
        folder = root / "local" / "train_teacher" / name
        folder.mkdir(parents=True)
        path = folder / f"point-00001-000001-{'0' * 64}.safetensors"
        path.write_bytes(b"x" * size)
        os.utime(path, (time.time() - days * 86400,) * 2)
        return folder

    def test_what_nobody_came_back_for_goes(self, tmp_path: Path) -> None:
        old, recent = self.aged(tmp_path, "a", 15), self.aged(tmp_path, "b", 13)
        assert resume.sweep(tmp_path) == 1
        assert not old.exists()
        assert recent.exists()
        assert resume.sweep(tmp_path / "nowhere") == 0

    def test_what_is_too_much_goes_oldest_first_but_nothing_of_today(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resume, "MOST_BYTES", 25)
        folders = [self.aged(tmp_path, str(days), days) for days in (5, 3, 0.5, 0.1)]
        assert resume.sweep(tmp_path) == 2
        assert [folder.exists() for folder in folders] == [False, False, True, True]
