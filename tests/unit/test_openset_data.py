"""Open classes of a data set: nothing is trained, chosen or normalised on them, and all of their images are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rco.core.errors import InputError
from rco.core.tensors import load_arrays
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources.class_folders import lay_out
from rco.data.sources.kinds import check_source, source_digest
from rco.data.sources.layout import laid_out
from rco.models.config import ModelConfig
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.training.config import TrainConfig
from rco.training.route import adopt_route
from rco.training.teacher import train_teacher
from tests.conftest import CPU


def prepared(folder: Path, **options: Any) -> Dataset:
    config = DataConfig.of(**options)
    prepare(config, folder, source_digest(config))
    return Dataset.open(folder)


def pixels(data: Dataset, part: str) -> tuple[np.ndarray, np.ndarray]:
    arrays, _ = load_arrays(data.folder / f"{part}.safetensors")
    return arrays["images"], arrays["labels"]


@pytest.fixture(scope="module")
def whole() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None], digits.target


def test_digits_without_three(tmp_path: Path, whole: tuple[np.ndarray, np.ndarray]) -> None:
    data = prepared(tmp_path, open_classes=("8", "2", "9"))
    manifest = data.manifest
    assert manifest.open_classes == {"2": 2, "8": 8, "9": 9}
    assert manifest.class_names == ("0", "1", "3", "4", "5", "6", "7")
    assert manifest.num_classes == 7
    images, labels = whole
    unseen = np.isin(labels, [2, 8, 9])
    # Every image of the open classes, as the source has it, with the source's labels.
    ours, their_labels = pixels(data, "open")
    np.testing.assert_array_equal(ours, images[unseen])
    np.testing.assert_array_equal(their_labels, labels[unseen])
    assert data.split("open").labels.tolist() == labels[unseen].tolist()
    assert manifest.sizes["open"] == unseen.sum()
    # The rest, renumbered: each image is in one part, under the new number of its class.
    by_content: dict[bytes, set[int]] = {}
    for image, label in zip(images, labels, strict=True):
        by_content.setdefault(image.tobytes(), set()).add(label)
    for part in ("train", "val", "test"):
        for image, label in zip(*pixels(data, part), strict=True):
            assert int(manifest.class_names[label]) in by_content[image.tobytes()]
        assert set(pixels(data, part)[1]) == set(range(7))
    assert sum(manifest.sizes[part] for part in ("train", "val", "test")) == (~unseen).sum()
    # Normalisation knows nothing of them either.
    train = pixels(data, "train")[0] / 255
    assert manifest.mean == pytest.approx((train.mean(),))
    assert manifest.std == pytest.approx((train.std(),))
    assert next(iter(data.split("open").batches(5)))[0].shape == (5, 1, 8, 8)


def test_without_open_classes_nothing_is_said_of_them(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    assert "open" not in (tmp_path / "manifest.json").read_text()
    assert not (tmp_path / "open.safetensors").exists()
    with pytest.raises(InputError, match=r"part = 'open': is not known. .*train, val, test"):
        data.split("open")


def test_the_choice_of_open_classes_is_part_of_the_digest(tmp_path: Path) -> None:
    digests = {prepared(tmp_path / name, open_classes=tuple(name)).manifest.digest for name in ("7", "8", "78")}
    assert len(digests) == 3


def test_images_of_every_part_are_unseen() -> None:
    """A source with a test part of its own: the open classes leave both."""
    labels = np.array([0, 1, 2, 3] * 6)
    parts = {"train": np.arange(16), "test": np.arange(16, 24)}
    layout = laid_out("x", ("a", "b", "c", "d"), labels, parts, ("b",))
    assert layout.class_names == ("a", "c", "d")
    assert layout.open_rows.tolist() == [i for i in range(24) if labels[i] == 1]
    for part, rows in parts.items():
        kept = [i for i in rows if labels[i] != 1]
        assert layout.parts[part].tolist() == kept
        assert layout.labels[kept].tolist() == [{0: 0, 2: 1, 3: 2}[int(labels[i])] for i in kept]
    assert set(layout.labels[layout.open_rows]) == {1}


def pictures(root: Path, classes: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("streamed", [False, True])
def test_folders(tmp_path: Path, streamed: bool) -> None:
    folder = pictures(tmp_path / "birds", {"crow": 6, "gull": 2, "kite": 6, "wren": 6})
    data = prepared(tmp_path / "data", dataset=str(folder), open_classes=("gull",), in_memory_gib=0 if streamed else 2)
    assert data.manifest.storage == ("files" if streamed else "arrays")
    assert data.manifest.open_classes == {"gull": 1}
    assert data.manifest.class_names == ("crow", "kite", "wren")
    ((x, y),) = list(data.split("open").batches(8, workers=0))
    assert y.tolist() == [1, 1]
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (data.manifest.mean, data.manifest.std))
    for i in range(2):
        original = np.asarray(Image.open(folder / "gull" / f"{i}.png")).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(x[i].numpy() * std + mean, original, atol=1e-5)
    # A class of two images could not be trained on, but is enough for an open one.
    with pytest.raises(InputError, match="gull"):
        check_source(DataConfig(dataset=str(folder)))
    assert check_source(DataConfig(dataset=str(folder), open_classes=("gull",))).class_names == ("crow", "kite", "wren")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["gul"], "open_classes = 'gul': is not a class of x. Did you mean 'gull'?"),
        (["4"], "numbers from 0 to 3; the names are crow, gull, kite, wren"),
        (["-1"], "is not a class"),
        (["gull", "1"], "names class 'gull' twice"),
        (["0", "1", "2"], "leaves 1 of x's classes"),
        (["crow", "gull", "kite", "wren"], "leaves 0"),
        (["wren"], "'wren': has 1 images. An image is compared with another"),
    ],
)
def test_refused_in_words(classes: list[str], words: str) -> None:
    names = [f"{c}/{i}.png" for c, n in {"crow": 4, "gull": 4, "kite": 4, "wren": 1}.items() for i in range(n)]
    with pytest.raises(InputError) as caught:
        lay_out("x", names, classes)
    assert words in str(caught.value)


def test_a_name_goes_before_a_number_and_kubeflows_floats_are_read() -> None:
    names = [f"{c}/{i}.png" for c in ("10", "20", "1", "2") for i in range(4)]
    assert lay_out("x", names, ["1"])[0].open_classes == {"1": 0}  # sorted as text: 1, 10, 2, 20
    assert lay_out("x", names, ["3"])[0].open_classes == {"20": 3}
    assert lay_out("x", names, ["2.0"])[0].open_classes == {"2": 2}


def test_published_sets_are_counted_before_they_are_read(tmp_path: Path) -> None:
    some = {"dataset": "cifar100", "data_root": str(tmp_path), "download": True}
    assert check_source(DataConfig.of(**some, open_classes=("apple", "3"))).num_classes == 98
    with pytest.raises(InputError, match="leaves 1 of cifar100's classes"):
        check_source(DataConfig.of(**some, open_classes=tuple(map(str, range(99)))))


def test_a_teacher_that_may_have_seen_the_open_classes_is_refused(tmp_path: Path) -> None:
    """Seven classes either way: the shape of the teacher does not tell which."""
    seen, other = (prepared(tmp_path / name, open_classes=tuple(name)) for name in ("789", "012"))
    spec = NetworkSpec.of(ModelConfig(model="digits-mlp", embedding_dim=4), seen.manifest)
    train = TrainConfig(epochs=1)
    assert len(list(train_teacher(seen, spec, train, CPU, checkpoint_every=1, folder=tmp_path / "route"))) == 1
    route = Route.open(tmp_path / "route")
    assert adopt_route(route, seen, spec, CPU, tmp_path / "same").checkpoints == route.checkpoints
    with pytest.raises(InputError, match=r"may have seen the open classes \(0, 1, 2\)"):
        adopt_route(route, other, spec, CPU, tmp_path / "other")


def test_the_manifest_can_be_read_by_people(tmp_path: Path) -> None:
    prepared(tmp_path, open_classes=("7",))
    assert json.loads((tmp_path / "manifest.json").read_text())["open_classes"] == {"7": 7}
