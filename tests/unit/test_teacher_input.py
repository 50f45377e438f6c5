"""A teacher that takes its images otherwise than the student: the same view of each, by the route's own word, in every task."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.core.tensors import load_metadata
from rco.data.augmentation import Augmentation
from rco.data.config import DataConfig, InputConfig
from rco.data.dataset import Dataset
from rco.data.network_input import NetworkInput, Seen
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.objectives.config import ObjectiveConfig
from rco.reporting.student import input_of, input_sentence
from rco.strategies.config import AnchorConfig
from rco.training.anchor import LiveAnchor, StoredLogits
from rco.training.config import TrainConfig
from rco.training.distillation import distill_route
from rco.training.distributed import answers
from rco.training.fed import fed
from rco.training.loop import Trainer
from rco.training.resume_points import ResumePoints
from rco.training.route import adopt_route
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.in_process import Walk, changed, settings_of
from tests.losses import route_loss

MEAN, STD = (0.5,), (0.25,)
EVERYTHING = Augmentation(augment="crop-flip", auto_augment="trivialaugment", erasing=0.5, mixup=0.4, cutmix=1.0)
FLAT: dict[str, Any] = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 2,
    "teacher_milestones": "1",
    "checkpoint_every": 1,
    "epochs": 2,
    "n_anchors": 1,
    "milestones": "1",
    "probe_size": 32,
    "device": "cpu",
}
OTHER_INPUT = {"teacher_image_size": 16, "teacher_image_mean": "0.5", "teacher_image_std": "0.25"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Digits, of which the student takes 8 pixels and 16 are kept."""
    folder = tmp_path_factory.mktemp("data")
    config = DataConfig(image_size=8, probe_size=32)
    prepare(config, folder, source_digest(config), kept_size=16)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def teachers(data: Dataset) -> Dataset:
    return data.seen_by(NetworkInput(size=16, mean=MEAN, std=STD))


@pytest.fixture(scope="module")
def route(teachers: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    spec = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=16)
    train = TrainConfig.of(epochs=2, milestones=(1,), batch_size=128)
    for _ in train_teacher(teachers, spec, train, CPU, checkpoint_every=1, folder=folder):
        pass
    return Route.open(folder)


def pixels(images: Tensor, data: Dataset) -> Tensor:
    """Of normalised images, the pixels in 0..1."""
    return images * data.manifest.std[0] + data.manifest.mean[0]


class TestTheSameView:
    @pytest.mark.parametrize(
        "augment",
        ["none", "crop-flip", "resized-crop-flip", Augmentation(auto_augment="randaugment"), EVERYTHING],
        ids=["none", "crop-flip", "resized-crop-flip", "policy", "everything"],
    )
    def test_the_student_sees_the_resized_image_of_the_teacher(
        self, data: Dataset, teachers: Dataset, augment: str | Augmentation
    ) -> None:
        batches = [
            split.indexed_batches(32, seed=3, epoch=2, augment=augment, workers=0, count=3)
            for split in (data.split("train"), teachers.split("train"))
        ]
        for (small, labels, rows), (large, same_labels, same_rows) in zip(*batches, strict=True):
            assert small.shape[1:] == (1, 8, 8)
            assert large.shape[1:] == (1, 16, 16)
            assert (rows == same_rows).all()
            assert torch.equal(labels, same_labels)
            resized = F.interpolate(pixels(large, teachers), (8, 8), mode="bilinear", align_corners=False, antialias=True)
            torch.testing.assert_close(pixels(small, data), resized, rtol=0, atol=2e-6)

    def test_a_view_that_is_kept_is_the_same_too(self, data: Dataset, teachers: Dataset) -> None:
        small, large = (
            torch.cat([x for x, _, _ in split.indexed_batches(256, augment="crop-flip", view=1, workers=0)])
            for split in (data.split("train"), teachers.split("train"))
        )
        resized = F.interpolate(pixels(large, teachers), (8, 8), mode="bilinear", align_corners=False, antialias=True)
        torch.testing.assert_close(pixels(small, data), resized, rtol=0, atol=2e-6)

    def test_a_teacher_may_see_less_of_the_image(self, data: Dataset) -> None:
        central = data.seen_by(replace(data.input, size=8, crop=0.5))
        whole, _, _ = next(data.split("val").indexed_batches(16, workers=0, kept=True))
        part, _, _ = next(central.split("val").indexed_batches(16, workers=0))
        assert torch.equal(part, whole[..., 4:12, 4:12])

    def test_a_smaller_teacher_leaves_the_images_as_they_are(self, digits: Path) -> None:
        data = Dataset.open(digits)
        small, large = (next(iter(d.split("val").batches(8)))[0] for d in (data.seen_by(replace(data.input, size=4)), data))
        expected = F.interpolate(large, (4, 4), mode="bilinear", align_corners=False, antialias=True)
        torch.testing.assert_close(small, expected, rtol=0, atol=0)

    def test_what_is_the_same_is_not_touched(self, digits: Path) -> None:
        data = Dataset.open(digits)
        assert data.seen_by(data.input) is data
        assert data.split("train").seen is None
        assert data.seen_by(replace(data.input, size=4)).seen_by(data.input) is data
        assert "kept_size" not in json.loads((digits / "manifest.json").read_text())

    def test_shares_of_workers_are_those_of_the_whole(self, teachers: Dataset) -> None:
        from rco.data.share import Share

        options: dict[str, Any] = {"seed": 1, "augment": EVERYTHING, "workers": 0, "count": 2}
        split = teachers.split("train")
        whole = list(split.indexed_batches(16, **options))
        halves = [list(split.indexed_batches(16, share=Share(rank, 2), **options)) for rank in range(2)]
        for (x, y, _), *parts in zip(whole, *halves, strict=True):
            assert torch.equal(x, torch.cat([part[0] for part in parts]))
            assert torch.equal(y, torch.cat([part[1] for part in parts]))

    def test_from_files_as_from_memory(self, tmp_path: Path) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        for name in ("a", "b"):
            (tmp_path / "images" / name).mkdir(parents=True)
            for i in range(20):
                Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(
                    tmp_path / "images" / name / f"{i}.png"
                )
        seen = []
        for gib in (0.0, 1.0):
            config = DataConfig.of(dataset=str(tmp_path / "images"), image_size=8, in_memory_gib=gib)
            manifest = prepare(config, tmp_path / f"data-{gib:g}", source_digest(config), kept_size=16)
            assert (manifest.image_shape, manifest.kept_shape) == ((3, 8, 8), (3, 16, 16))
            assert manifest.storage == ("arrays" if gib else "files")
            data = Dataset.open(tmp_path / f"data-{gib:g}")
            own = NetworkInput(size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
            splits = (data.split("train"), data.seen_by(own).split("train"))
            seen.append([next(split.indexed_batches(8, seed=1, augment="shift", workers=0))[0] for split in splits])
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(one, other)


class Recording(nn.Module):
    """Logits of a linear layer; what it was shown is kept."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.shown = nn.Linear(size * size, 10), list[Tensor]()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach().clone())
        logits: Tensor = self.layer(x.flatten(1)) * self.scale
        return logits


class TestDistillation:
    @pytest.mark.parametrize("augment", [Augmentation(augment="crop-flip"), EVERYTHING], ids=["crop-flip", "everything"])
    def test_both_networks_of_a_step_are_shown_the_same_view(
        self, data: Dataset, teachers: Dataset, augment: Augmentation
    ) -> None:
        student, teacher = Recording(8, 1.0), Recording(16, 1.0)
        settings = {name: getattr(augment, name) for name in ("augment", "auto_augment", "erasing", "mixup", "cutmix")}
        seen = teachers.split("train").seen
        assert isinstance(seen, Seen)
        anchor = LiveAnchor(teacher, teachers.manifest.image_shape, "cpu", seen=seen)
        teacher.shown.clear()  # what was shown when it was looked at
        trainer = Trainer(
            student,
            data.split("train"),
            route_loss(4.0, 1.0),
            TrainConfig.of(epochs=1, batch_size=256, **settings),
            CPU,
            epochs=1,
            first_epoch=1,
            anchor=anchor,
        )
        assert len(list(trainer.epochs())) == 1
        shown = anchor.network.shown if isinstance(anchor.network, Recording) else teacher.shown
        assert len(shown) == len(student.shown) > 1
        for small, large in zip(student.shown, shown, strict=True):
            resized = F.interpolate(pixels(large, teachers), (8, 8), mode="bilinear", align_corners=False, antialias=True)
            torch.testing.assert_close(pixels(small, data), resized, rtol=0, atol=2e-6)

    def test_kept_logits_are_the_live_ones(self, data: Dataset, teachers: Dataset, route: Route, tmp_path: Path) -> None:
        def network() -> nn.Module:
            return load_network(route.folder / route.checkpoints[-1].file)

        split = teachers.split("train")
        options: dict[str, Any] = {"augment": "shift", "views": 2, "compute": CPU, "batch_size": 128}
        options |= {"anchor_id": "a", "folder": tmp_path}
        stored = StoredLogits(anchor=network(), train=split, **options)
        live = LiveAnchor(network(), teachers.manifest.image_shape, "cpu", seen=split.seen)
        view = stored.prepare_epoch(2)
        for x, _, rows in data.split("train").indexed_batches(64, seed=1, augment="shift", view=view, workers=0, kept=True):
            kept, anew = (anchor.output(x, rows, view).logits for anchor in (stored, live))
            torch.testing.assert_close(kept, anew, rtol=2e-3, atol=2e-3)
        again = StoredLogits(anchor=network(), train=split, **options)
        again.prepare(view)
        assert again.computed == 0, "found"
        otherwise = StoredLogits(
            anchor=network(), train=data.seen_by(NetworkInput(size=16, mean=(0.4,), std=STD)).split("train"), **options
        )
        otherwise.prepare(view)
        assert otherwise.computed == 1, "another input is another answer"

    @pytest.mark.parametrize("views", [0, 2])
    def test_a_walk_goes_on_where_it_was_interrupted(self, data: Dataset, route: Route, tmp_path: Path, views: int) -> None:
        def walk(points: ResumePoints | None, most: int = 99) -> tuple[nn.Module, list[dict[str, Any]]]:
            student = NetworkSpec.of(config("digits-mlp"), data.manifest).build(0)
            rows = distill_route(
                student,
                route,
                data,
                anchors=AnchorConfig.of(n_anchors=2),
                objective=ObjectiveConfig.of(views=views),
                train=TrainConfig.of(epochs=4, batch_size=128, milestones=(1,), augment="shift"),
                compute=CPU,
                checkpointer=points,
            )
            return student, [row for row, _ in zip(rows, range(most), strict=False)]

        whole, rows = walk(None)
        assert len(rows) == 4
        walk(ResumePoints(str(tmp_path), {"walk": views}, every=0), most=2)
        resumed, later = walk(ResumePoints(str(tmp_path), {"walk": views}, every=0))
        assert 0 < len(later) < 4
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))


def config(model: str) -> Any:
    from rco.models.config import ModelConfig

    return ModelConfig(model=model)


class TestRoute:
    def test_a_route_says_what_its_teacher_takes(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        assert (route.network.image_size, route.mean, route.std, route.crop) == (16, MEAN, STD, 1.0)
        assert fed(route, data).input == NetworkInput(size=16, mean=MEAN, std=STD)
        network = load_network(route.folder / route.checkpoints[-1].file)
        logits, _ = answers(network, fed(route, data).split("val"), CPU)
        assert np.allclose(logits[np.asarray(data.manifest.probe)], route.probe()[1][-1], rtol=0, atol=1e-4)
        adopted = adopt_route(route, data, route.network, CPU, tmp_path / "adopted")
        assert adopted.checkpoints == route.checkpoints
        assert (adopted.mean, adopted.std) == (MEAN, STD)

    def test_the_part_that_a_teacher_saw_is_in_its_route(self, data: Dataset, tmp_path: Path) -> None:
        spec = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
        central = data.seen_by(replace(data.input, crop=0.5))
        for _ in train_teacher(
            central, spec, TrainConfig.of(epochs=1, schedule="constant"), CPU, checkpoint_every=1, folder=tmp_path
        ):
            pass
        assert Route.open(tmp_path).crop == 0.5
        assert fed(Route.open(tmp_path), data).input == central.input
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "crop": 2.0}))
        with pytest.raises(InputError, match="crop is not a part of an image"):
            Route.open(tmp_path)

    def test_an_old_route_takes_the_settings_word(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        shutil.copytree(route.folder, tmp_path / "old")
        manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
        del manifest["mean"], manifest["std"]
        (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
        old = Route.open(tmp_path / "old")
        assert fed(old, data).input == replace(data.input, size=16)
        asked = InputConfig(image_mean=("0.5",), image_std=("0.25",))
        adopted = adopt_route(old, data, old.network, CPU, tmp_path / "adopted", asked=asked)
        assert (adopted.mean, adopted.std) == (MEAN, STD), "later tasks read it from the route"
        assert [c.val_accuracy for c in adopted.checkpoints] == [c.val_accuracy for c in route.checkpoints]

    def test_numbers_of_another_sample_are_the_data_s(self, route: Route, data: Dataset) -> None:
        nearly = replace(route, data_digest="another", mean=(data.manifest.mean[0] + 1e-3,), std=data.manifest.std)
        assert fed(nearly, data).input == replace(data.input, size=16)
        assert fed(replace(nearly, data_digest=data.manifest.digest), data).input.mean == nearly.mean, "it was said so"


class TestSettings:
    def test_without_them_no_task_is_told_of_them(self) -> None:
        outputs = settings_of(FLAT).outputs()
        assert "teacher_input" not in outputs["teacher"]
        assert "kept_size" not in outputs["data"]

    def test_they_reach_the_tasks_that_depend_on_them(self) -> None:
        plain, larger = settings_of(FLAT), settings_of({**FLAT, **OTHER_INPUT})
        assert changed(plain, larger) == {"data", "teacher", "filing"}
        assert (larger.data.kept_size, larger.data.data.image_size) == (16, 8)
        assert larger.filing.parameters["teacher_image_size"] == 16
        assert larger.filing.parameters["teacher_image_mean"] == ["0.5"]
        smaller = settings_of({**FLAT, "image_size": 16, "teacher_image_size": 8})
        assert smaller.data.kept_size is None
        assert settings_of({**FLAT, "teacher_image_size": 14, "teacher_image_crop": 0.875}).data.kept_size == 16

    @pytest.mark.parametrize(
        ("flat", "words"),
        [
            ({"teacher_image_mean": "0.5"}, r"teacher_image_std = \[\]: is left out, and teacher_image_mean is given"),
            (
                {"teacher_image_mean": "0.5,0.5", "teacher_image_std": "0.2"},
                "teacher_image_mean.*has 2 numbers, and the images 1",
            ),
            ({"teacher_image_mean": "120", "teacher_image_std": "50"}, "teacher_image_mean.*is of pixels in 0..255"),
            ({"teacher_image_crop": 1.5}, "teacher_image_crop = 1.5: is not a part from 0.1 to 1"),
            ({"teacher_image_size": 5000}, "teacher_image_size = 5000: is more than 4096"),
            ({"teacher_image_size": -1}, "teacher_image_size = -1"),
            ({"teacher_image_size": 4096, "teacher_image_crop": 0.5}, "images are kept at 8192 pixels, more than 4096"),
            (
                {"teacher": "torchvision/alexnet", "teacher_image_size": 16},
                "teacher = 'torchvision/alexnet': does not work with 1x16x16 images",
            ),
        ],
    )
    def test_what_cannot_work_is_refused(self, flat: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            settings_of({**FLAT, **flat})

    def test_a_route_is_believed_and_contradiction_refused(self, route: Route) -> None:
        along = {
            name: FLAT[name] for name in ("teacher", "student", "epochs", "n_anchors", "milestones", "probe_size", "device")
        }
        along |= {"route": str(route.folder)}
        settings = settings_of(along)
        assert (settings.data.kept_size, settings.teacher.teacher_input) == (16, None)
        assert settings.filing.parameters["teacher_image_size"] == 16
        assert settings.filing.parameters["teacher_image_std"] == ["0.25"]
        assert settings_of({**along, **OTHER_INPUT}).data.kept_size == 16, "the same word"
        for flat, words in (
            ({"teacher_image_size": 8}, "teacher_image_size = 8: is not what the route's teacher was trained with .16."),
            ({"teacher_image_crop": 0.5}, "teacher_image_crop = 0.5: is not what the route's teacher was trained with .1."),
            (
                {"teacher_image_mean": "0.4", "teacher_image_std": "0.25"},
                r"teacher_image_mean = \['0.4'\]: is not what the route's teacher was trained with .0.5.",
            ),
        ):
            with pytest.raises(InputError, match=words):
                settings_of({**along, **flat})

    def test_files_that_keep_their_size_need_a_word_on_the_student_s(self, tmp_path: Path) -> None:
        from PIL import Image

        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(20):
                Image.new("L", (8, 8), 10 * i).save(tmp_path / name / f"{i}.png")
        flat = {**FLAT, "dataset": str(tmp_path), "teacher_image_size": 16}
        with pytest.raises(InputError, match="image_size = 0: is left out, so that image files keep their size"):
            settings_of(flat)
        assert settings_of({**flat, "image_size": 8}).data.kept_size == 16


def test_a_run_with_a_teacher_of_another_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tasks one by one; then the same route is adopted by a run that says nothing of its teacher's input."""
    from rco.core.documents import read_json
    from rco.tasks.data import prepare_data
    from rco.tasks.teacher import train_teacher as teacher_task

    def run(folder: Path, **flat: Any) -> tuple[Walk, dict[str, float]]:
        walk = Walk(folder, **flat)
        prepare_data(walk.settings["data"], dataset=walk.dataset)
        teacher_task(walk.settings["teacher"], dataset=walk.dataset, route=walk.route, route_index=walk.index)
        walk.follow()
        return walk, walk.evaluate()

    first, figures = run(tmp_path / "first", **{**FLAT, **OTHER_INPUT})
    route = Route.open(first.route)
    assert (route.network.image_size, route.mean, route.std) == (16, MEAN, STD)
    inputs = read_json(first.student / "inputs.json")
    assert inputs["image_shape"] == [1, 8, 8], "what the student takes"
    assert inputs["mean"] != [0.5]
    large, small = (
        NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=n) for n in (16, 8)
    )
    assert figures["teacher_macs"] > 3 * _macs(small)
    assert figures["teacher_macs"] == _macs(large)
    data = Dataset.open(first.dataset)
    network = load_network(route.folder / route.checkpoints[-1].file)
    logits, labels = answers(network, fed(route, data).split("test"), CPU)
    assert figures["teacher_accuracy"] == float((logits.argmax(1) == labels).mean())
    document: Any = read_json(next(first.evaluation.glob("*/evaluation.json")))
    assert document["teacher_input"] == {"size": 16, "mean": [0.5], "std": [0.25], "crop": 1.0}
    sentence = "The teacher takes 16x16 images of the same views, with mean 0.5 and deviation 0.25."
    assert sentence in input_sentence(input_of(document))
    assert (load_metadata(first.student / "student.safetensors")["network"])["image_size"] == 8, "what is exported"
    example = _arrays(next(first.evaluation.glob("*/example.safetensors")))
    assert example["pixels"].shape[1:] == (1, 8, 8)

    along = {name: FLAT[name] for name in ("teacher", "student", "epochs", "n_anchors", "milestones", "probe_size", "device")}
    caplog.set_level(logging.INFO, "rco")
    second, again = run(tmp_path / "second", **along, route=str(first.route))
    assert Dataset.open(second.dataset).manifest.digest == data.manifest.digest
    assert again["student_accuracy"] == figures["student_accuracy"]
    ours, theirs = (_arrays(walk.student / "student.safetensors") for walk in (first, second))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def _macs(spec: NetworkSpec) -> int:
    from rco.evaluation.cost import count_macs

    return count_macs(spec.build(), (1, spec.image_size, spec.image_size))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    found: dict[str, NDArray[Any]] = load_file(path)
    return found
