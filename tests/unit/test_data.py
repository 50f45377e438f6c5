"""Sources, splits, prepared data sets, batches and augmentation."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import io as scipy_io
from scipy import stats
from torchvision import datasets, transforms
from torchvision.transforms import functional as vision

from rco.core.errors import InputError
from rco.data import augment
from rco.data.augmentation import AUGMENTATIONS
from rco.data.config import DataConfig
from rco.data.dataset import Dataset, Manifest, Split
from rco.data.decoding import Decoding
from rco.data.images import ArrayImages, FileImages, header
from rco.data.prepare import channel_statistics, prepare, split, stratified
from rco.data.sources.class_folders import lay_out
from rco.data.sources.kinds import check_source, open_source, source_digest
from rco.data.sources.published import PUBLISHED, Published
from tests.hostile import hostile_pickle

CLASSES = ("cat", "dog", "owl")


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A random image of (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode)


def folder_of(root: Path, counts: dict[str, int], **options: Any) -> Path:
    """An image folder: so many PNG files in each of the named folders."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(1000 * number + i, **options).save(root / name / f"{i:03}.png")
    return root


def tar_of(folder: Path, path: Path, name: str = ".") -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:] if path.suffix != '.tar' else ''}") as tar:
        tar.add(folder, name)
    return path


def prepared(config: DataConfig, out: Path) -> Dataset:
    prepare(config, out, source_digest(config))
    return Dataset.open(out)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """30 images of three classes, without a test part."""
    return folder_of(tmp_path / "animals", {"cat": 10, "dog": 12, "owl": 8})


# --- splits ---------------------------------------------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=8),
    val=st.floats(0.01, 0.6),
    test=st.floats(0.01, 0.6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_split_is_a_partition_with_every_class_in_every_part(counts: list[int], val: float, test: float, seed: int) -> None:
    names = [f"{c}/{i}.png" for c, count in enumerate(counts) for i in range(count)]
    layout, _ = lay_out("x", names)
    config = DataConfig(dataset="x", val_fraction=val, test_fraction=test, data_seed=seed)
    parts = split(layout, config)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(names)))
    assert all(set(layout.labels[rows]) == set(range(len(counts))) for rows in parts.values())
    again = split(layout, config)
    assert all(np.array_equal(parts[part], again[part]) for part in parts)


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=8), fraction=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_stratified_share_is_within_one_image_of_exact(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = stratified(labels, fraction, (seed,))
    assert len(set(chosen)) == len(chosen)
    assert abs(len(chosen) - fraction * len(labels)) <= 0.5 + 1e-9
    taken = np.bincount(labels[chosen], minlength=len(counts))
    assert (np.abs(taken - fraction * np.array(counts)) < 1 + 1e-9).all()


def test_odd_images_go_to_the_largest_remainders() -> None:
    labels = np.repeat(np.arange(3), (9, 8, 3))
    for seed in range(20):
        assert labels[stratified(labels, 0.1, (seed,))].tolist() == [0, 1]


def test_stratified_is_random_in_members_and_in_who_gets_the_odd_image() -> None:
    labels = np.repeat(np.arange(4), 5)
    chosen = [stratified(labels, 0.1, (seed,)) for seed in range(400)]
    members = Counter(int(i) for rows in chosen for i in rows)
    assert set(members) == set(range(20))
    assert stats.chisquare(list(members.values())).pvalue > 1e-3


def test_parts_of_the_source_stay_as_they_are() -> None:
    names = [f"{part}/{c}/{i}.png" for part in ("train", "val", "test") for c in "ab" for i in range(5)]
    layout, paths = lay_out("x", names)
    parts = split(layout, DataConfig(dataset="x"))
    assert {part: {paths[row].split("/")[0] for row in rows} for part, rows in parts.items()} == {
        "train": {"train"},
        "val": {"val"},
        "test": {"test"},
    }


# --- layouts --------------------------------------------------------------------------------------------------------------


def test_layout_numbers_classes_by_name_whatever_the_order_of_the_files() -> None:
    layout, paths = lay_out("x", [f"{c}/{i}.JPG" for i in (2, 0, 1) for c in ("dog", "ant", "cat")])
    assert layout.class_names == ("ant", "cat", "dog")
    assert [layout.class_names[label] for label in layout.labels] == [path.split("/")[0] for path in paths]
    assert paths == sorted(paths)


def test_val_without_test_is_the_test_part() -> None:
    layout, _ = lay_out("x", [f"{part}/{c}/{i}.png" for part in ("train", "val") for c in "ab" for i in range(3)])
    assert {part: len(rows) for part, rows in layout.parts.items()} == {"train": 6, "test": 6}


@pytest.mark.parametrize("around", ["", "./", "set/", "a/b/"])
@pytest.mark.parametrize("part", ["", "train/"])
def test_layout_sees_through_folders_around_it(around: str, part: str) -> None:
    layout, paths = lay_out("x", [f"{around}{part}{c}/sub/{i}.png" for c in "ab" for i in range(3)])
    assert layout.class_names == ("a", "b")
    assert len(paths) == 6


def test_layout_passes_over_what_is_no_image_of_a_class() -> None:
    images = [f"{c}/{i}.png" for c in "ab" for i in range(3)]
    odd = ["top.png", "a/readme.txt", ".git/x.png", "a/._0.png", "__MACOSX/a/0.png", "a/.cache/x.png"]
    assert lay_out("x", images + odd)[1] == images


def test_a_class_may_be_called_train() -> None:
    layout, _ = lay_out("x", [f"{c}/{i}.png" for c in ("train", "plane") for i in range(3)])
    assert layout.class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ([], "holds no images"),
        (["a/x.txt"], "holds no images"),
        (["1.png", "2.png"], "not in class folders"),
        ([f"a/{i}.png" for i in range(9)], r"one class only \(a\)"),
        ([f"{c}/{i}.png" for c in "ab" for i in range(3)][:-1], "class 'b' has 2 images.* 3 or more"),
        (
            [*(f"{p}/{c}/{i}.png" for p in ("train", "test") for c in "ab" for i in range(3)), "test/c/1.png"],
            r"has 1 class \(c\) in test that train does not have. Classes of train: a, b",
        ),
        ([f"{p}/{c}/1.png" for p in ("train", "test") for c in "ab"], "class 'a' has 1 images.* 2 or more"),
        ([f"{p}/{c}/{i}.png" for p in ("val", "test") for c in "ab" for i in range(3)], "no train/CLASS folders"),
    ],
)
def test_layout_that_cannot_work(names: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        lay_out("x", names)


# --- images ---------------------------------------------------------------------------------------------------------------


def files(tmp_path: Path, *images: Image.Image, size: int = 0, suffix: str = "png") -> FileImages:
    names = [f"{i}.{suffix}" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(tmp_path / name)
    return FileImages.of(tmp_path, names, size)


def test_grey_files_have_one_channel_unless_one_is_not_grey(tmp_path: Path) -> None:
    grey, colour = picture(1, mode="L"), picture(2)
    only_grey = files(tmp_path, grey, grey)
    assert np.array_equal(only_grey.read(np.array([0])), np.asarray(grey)[None, None])
    for images in (files(tmp_path, grey, colour), files(tmp_path, colour, grey)):
        assert images.shape == (3, 8, 8)
    assert np.array_equal(images.read(np.array([1]))[0], np.stack([np.asarray(grey)] * 3))
    assert np.array_equal(images.read(np.array([0]))[0], np.asarray(colour).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "LA", "1"])
def test_every_other_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    image = picture(1).convert(mode)
    images = files(tmp_path, image, suffix="tif" if mode == "CMYK" else "png")
    assert np.array_equal(images.read(np.array([0]))[0], np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 128, 129, 257], [2570, 40_000, 65_407, 65_535]], np.uint16)
    images = files(tmp_path, Image.fromarray(levels), suffix=suffix)
    assert images.shape == (1, 2, 4)
    assert images.read(np.array([0]))[0, 0].tolist() == [[0, 0, 1, 1], [10, 156, 255, 255]]
    twelve = replace(images, decoding=Decoding(white_level=4095))
    assert twelve.read(np.array([0]))[0, 0].tolist() == [[0, 8, 8, 16], [160, 255, 255, 255]]


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for pixels in (np.ones((8, 8), np.float32), np.full((8, 8), 70_000, np.int32)):
        with pytest.raises(InputError, match=r"0\.tif.*whose range is not known"):
            files(tmp_path, Image.fromarray(pixels), suffix="tif")


def test_other_size_is_refused_by_name_of_file_and_setting(tmp_path: Path) -> None:
    images = files(tmp_path, picture(0), picture(1, (8, 9)))
    for act in (images.check, lambda: images.read(np.array([0, 1]))):
        with pytest.raises(InputError, match=r"1\.png is 8x9 pixels, but the first image is 8x8.*image_size"):
            act()


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (32, 32), (7, 12)])
def test_resizing_is_shorter_side_then_centre_crop(tmp_path: Path, size: tuple[int, int]) -> None:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    smooth = np.stack([5 * x, 5 * y, 2 * (x + y)], axis=2).astype(np.uint8)
    read = files(tmp_path, Image.fromarray(smooth), size=12).read(np.array([0]))[0]
    standard = transforms.Compose([transforms.Resize(12), transforms.CenterCrop(12)])(Image.fromarray(smooth))
    # They differ by less than half a pixel in where an odd margin is cut.
    assert np.abs(read.astype(int) - np.asarray(standard).transpose(2, 0, 1)).max() <= 0.5 * 5 * max(min(size) / 12, 1) + 1


def test_large_jpeg_is_resized_as_well_as_a_whole_one(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(512), np.arange(384))
    waves = (128 + 60 * np.sin(x / 5) + 60 * np.sin(y / 6)).astype(np.uint8)
    image = Image.fromarray(np.stack([waves] * 3, axis=2))
    read = [files(tmp_path, image, size=40, suffix=suffix).read(np.array([0]))[0] for suffix in ("jpg", "png")]
    assert np.abs(read[0].astype(int) - read[1]).mean() < 3


def test_arrays_are_resized_as_files_are(tmp_path: Path) -> None:
    colour, grey = picture(1, (20, 14)), picture(1, (20, 14), "L")
    for image in (colour, grey):
        pixels = np.asarray(image)[None] if image is grey else np.asarray(image).transpose(2, 0, 1)
        images = ArrayImages(pixels[None], 6)
        assert images.shape == (len(pixels), 6, 6)
        assert np.array_equal(images.read(np.array([0])), files(tmp_path, image, size=6).read(np.array([0])))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    images = files(tmp_path, picture(0, (64, 64)), picture(1, (64, 64)), suffix="jpg")
    whole = (tmp_path / "1.jpg").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no image"):
        (tmp_path / "1.jpg").write_bytes(damaged)
        with pytest.raises(InputError, match=r"1\.jpg.*not a readable image"):
            images.read(np.array([0, 1]), threads=2)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"1\.jpg"):
        images.check()


def test_large_images_are_shrunk_up_to_a_limit_that_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0, (120, 100)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself refuses at twice as much
    images = FileImages.of(tmp_path, ["photo.png"], 10)
    small = images.read(np.array([0]))
    monkeypatch.undo()
    assert np.array_equal(small, images.read(np.array([0])))
    assert Image.MAX_IMAGE_PIXELS is not None, "Pillow's own limit is as it was"
    low = Decoding(max_megapixels=0.0119)
    for act in (
        lambda: header(tmp_path / "photo.png", decoding=low),
        lambda: replace(images, decoding=low).read(np.array([0])),
    ):
        with pytest.raises(InputError, match=r"photo.png.*is too large: 120x100 pixels.*Set max_megapixels = 1,"):
            act()
    assert header(tmp_path / "photo.png", decoding=Decoding(max_megapixels=0.012)) == (3, 100, 120)


def test_bombs_are_refused(tmp_path: Path) -> None:
    """Far more pixels than a file of this length has, above the limit at which Pillow warns."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="may be a decompression bomb"):
        header(tmp_path / "bomb.png")


def test_formats_that_start_programs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="not a readable image"):
        header(tmp_path / "x.jpg")


# --- sources --------------------------------------------------------------------------------------------------------------


def read_all(config: DataConfig, scratch: Path) -> tuple[Any, np.ndarray]:
    with open_source(config, scratch) as source:
        return source.layout, source.images.read(np.arange(len(source.layout.labels)))


def test_digits(tmp_path: Path) -> None:
    config = DataConfig()
    info = check_source(config)
    layout, pixels = read_all(config, tmp_path)
    assert pixels.shape == (1797, *info.image_shape) == (1797, 1, 8, 8)
    assert sorted(set(pixels.ravel())) == [round(level * 255 / 16) for level in range(17)]
    assert np.bincount(layout.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert info.counts == {part: len(rows) for part, rows in layout.parts.items()}


def shrunk(name: str, counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Published:
    """Expect so many training and test images of a published data set."""
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], counts=counts))
    return PUBLISHED[name]


def mnist(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Files as published, with 40 + 20 images."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 28, 28), np.uint8), np.arange(60, dtype=np.uint8) % 10
    known = shrunk(name, (40, 20), monkeypatch)
    (root / known.folder).mkdir(parents=True)
    for part, rows in ((0, slice(0, 40)), (2, slice(40, 60))):
        count = len(labels[rows])
        (root / known.files[part]).write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels[rows].tobytes())
        (root / known.files[part + 1]).write_bytes(struct.pack(">II", 2049, count) + labels[rows].tobytes())
    return pixels[:, None], labels


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Files of the binary distribution, with four images of each class in each file."""
    rng = np.random.default_rng(0)
    size = 4 * PUBLISHED[name].num_classes
    known = shrunk(name, ((len(PUBLISHED[name].files) - 2) * size, size), monkeypatch)
    names, *batches = known.files
    (root / known.folder).mkdir(parents=True)
    (root / names).write_text("".join(f"class {i}\n" for i in range(known.num_classes)) + "\n")
    pixels, labels = [], []
    for file in batches:
        images = rng.integers(0, 256, (size, 3072), np.uint8)
        truth = (np.arange(size, dtype=np.uint8) * 7 % known.num_classes)[:, None]
        coarse = [truth // 5] if known.num_classes == 100 else []
        (root / file).write_bytes(np.hstack([*coarse, truth, images]).tobytes())
        pixels.append(images.reshape(-1, 3, 32, 32))
        labels.append(truth[:, 0])
    return np.concatenate(pixels), np.concatenate(labels).astype(np.int64)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    published, pixels, labels = {}, [], []
    for part in ("train", "test"):
        batch, truth = rng.integers(0, 256, (32, 32, 3, 40), np.uint8), np.arange(40) % 10 + 1
        name = f"{part}_32x32.mat"
        scipy_io.savemat(root / name, {"X": batch, "y": truth[:, None].astype(np.uint8)})
        published[part] = ["", name, hashlib.md5((root / name).read_bytes()).hexdigest()]
        pixels.append(batch.transpose(3, 2, 0, 1))
        labels.append(truth % 10)  # digit 0 has label 10
    monkeypatch.setattr(datasets.SVHN, "split_list", published)
    return np.concatenate(pixels), np.concatenate(labels)


def published(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    root.mkdir(exist_ok=True)
    if name == "svhn":
        return svhn(root, monkeypatch)
    return (cifar if name.startswith("cifar") else mnist)(root, monkeypatch, name)


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "cifar10", "cifar100", "svhn"])
def test_torchvision_sets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig.of(dataset=name, data_root=str(tmp_path / "root"))
    with pytest.raises(InputError, match=r"data_root.*download is off.*download = true"):
        source_digest(config)
    with pytest.raises(InputError, match=r"data_root.*download is off.*download = true"):
        check_source(config)
    pixels, labels = published(name, tmp_path / "root", monkeypatch)
    info = check_source(config)
    layout, read = read_all(config, tmp_path)
    assert np.array_equal(read, pixels)
    assert np.array_equal(layout.labels, labels)
    assert (len(layout.class_names), read.shape[1:]) == (info.num_classes, info.image_shape)
    assert layout.parts["train"].tolist() + layout.parts["test"].tolist() == list(range(len(labels)))
    before = source_digest(config)
    victim = max((tmp_path / "root").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else -1)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert source_digest(config) != before


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_damaged_published_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(name, tmp_path, monkeypatch)
    whole = {file: (tmp_path / file).read_bytes() for file in PUBLISHED[name].files}
    for file, content in whole.items():
        almost = [content[:-1], content + b"\0"] if not file.endswith(".txt") else []
        for damaged in (b"not what was published", b"", *almost):
            (tmp_path / file).write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{name}.*cannot be read"):
                read_all(DataConfig.of(dataset=name, data_root=str(tmp_path)), tmp_path)
        (tmp_path / file).write_bytes(content)


def test_a_label_beyond_the_classes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published("cifar10", tmp_path, monkeypatch)
    file = tmp_path / PUBLISHED["cifar10"].files[1]
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    with pytest.raises(InputError, match="there is a label 10, but there are 10 classes"):
        read_all(DataConfig.of(dataset="cifar10", data_root=str(tmp_path)), tmp_path)


def test_the_pickled_distribution_is_not_read(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(hostile_pickle(owned))
    with pytest.raises(InputError, match=r"the Python distribution is pickled.*unpack cifar-10-binary.tar.gz"):
        source_digest(DataConfig.of(dataset="cifar10", data_root=str(tmp_path)))
    assert not owned.exists()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_download_is_checked_against_the_published_sum(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    asked = []

    def wrong_bytes(url: str, path: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(url)
        Path(path).write_bytes(b"something else")

    monkeypatch.setattr(utils, "_urlretrieve", wrong_bytes)
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    with pytest.raises(InputError, match=r"could not be downloaded \(File not found or corrupted"):
        source_digest(DataConfig.of(dataset=name, data_root=str(tmp_path), download=True))
    assert all("python" not in url for url in asked)
    assert asked


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    config = DataConfig.of(dataset=name, data_root=str(tmp_path), download=True)
    check_source(config)
    with pytest.raises(InputError, match=rf"{name}.*could not be downloaded.*no network.*data_root"):
        read_all(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("CIFAR10", "Did you mean 'cifar10'"),
        ("cifar-100", "Did you mean 'cifar100'"),
        ("no/such/folder", "neither a known data set nor an existing folder"),
        ("missing.tar", "neither a known data set nor an existing"),
        ("gs://bucket/x", "not a kind of address"),
        (__file__, "is a file, but not a tar"),
    ],
)
def test_unknown_source(name: str, complaint: str, tmp_path: Path) -> None:
    config = DataConfig(dataset=name)
    for act in (check_source, source_digest, lambda config: prepare(config, tmp_path, "")):
        with pytest.raises(InputError, match=complaint) as caught:
            act(config)
        assert caught.value.parameter == "dataset"


def test_folder_tar_and_store_hold_the_same(tmp_path: Path, animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    from rco.core.storage.s3 import ENDPOINTS
    from rco.core.storage.transfer import upload

    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    tars = [
        tar_of(animals, tmp_path / f"animals.tar{suffix}", around)
        for suffix, around in (("", "."), (".gz", "a"), (".xz", "a/b"))
    ]
    with mock_aws():
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        upload(animals, "s3://bucket/animals")
        upload(tars[1], "s3://bucket/animals.tar.gz")
        sources = [str(animals), animals.as_uri(), *map(str, tars), "s3://bucket/animals", "s3://bucket/animals.tar.gz"]
        infos, digests = [], set()
        for i, source in enumerate(sources):
            config = DataConfig(dataset=source)
            infos.append(check_source(config))
            digests.add(prepare(config, tmp_path / f"out{i}", source_digest(config)).digest)
            assert [p.name for p in (tmp_path / f"out{i}").iterdir() if p.name.startswith(".")] == [], "leftovers"
    assert len(digests) == 1
    assert all(info == infos[0] for info in infos)
    assert infos[0].class_names == CLASSES
    assert infos[0].image_shape == (3, 8, 8)


def test_tar_cannot_write_elsewhere(tmp_path: Path, animals: Path) -> None:
    path = tar_of(animals, tmp_path / "evil.tar")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("cat/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match="a member that is a link"):
        prepare(DataConfig(dataset=str(path)), tmp_path / "out", "")
    path = tar_of(animals, tmp_path / "outside.tar")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("../../outside.png")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    prepare(DataConfig(dataset=str(path)), tmp_path / "a" / "b" / "out", "")
    assert not list(tmp_path.rglob("outside.png"))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_tar(tmp_path: Path, animals: Path, suffix: str, part: float) -> None:
    path = tar_of(animals, tmp_path / f"x{suffix}")
    whole = path.read_bytes()
    end = whole.rstrip(b"\0") if suffix == ".tar" else whole  # a plain tar is filled up with zeros
    path.write_bytes(end[: int(part * len(end))])
    config = DataConfig(dataset=str(path))
    for act in (check_source, lambda config: prepare(config, tmp_path / "out", "")):
        with pytest.raises(InputError, match=r"not a readable (tar|image)"):
            act(config)


# --- prepared data sets ---------------------------------------------------------------------------------------------------


def test_prepared_set_holds_every_image_once_with_its_label(tmp_path: Path, animals: Path) -> None:
    dataset = prepared(DataConfig(dataset=str(animals), probe_size=4), tmp_path / "out")
    m = dataset.manifest
    assert (m.num_classes, m.class_names, m.image_shape) == (3, CLASSES, (3, 8, 8))
    assert m.sizes == {"train": 19, "val": 5, "test": 6}
    seen = Counter()
    for part, size in m.sizes.items():
        (x, y), *more = dataset.split(part).batches(100)
        assert (len(x), len(dataset.split(part)), more) == (size, size, [])
        assert torch.equal(y, dataset.split(part).labels)
        pixels = denormalised(x, m)
        seen.update((m.class_names[label], image.tobytes()) for label, image in zip(y, pixels, strict=True))
    expected = Counter(
        (path.parent.name, np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes()) for path in animals.rglob("*.png")
    )
    assert seen == expected


def denormalised(x: torch.Tensor, manifest: Manifest) -> np.ndarray:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (manifest.mean, manifest.std))
    return ((x.cpu() * std + mean) * 255).round().to(torch.uint8).numpy()


def test_training_images_have_mean_0_and_deviation_1(tmp_path: Path, animals: Path) -> None:
    dataset = prepared(DataConfig(dataset=str(animals)), tmp_path / "out")
    x = torch.cat([x for x, _ in dataset.split("train").batches(7)])
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (x.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_channel_statistics() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 5), np.uint8) // np.array([1, 2, 4], np.uint8)[:, None, None]
    mean, std = channel_statistics([pixels[:7], pixels[7:]])
    assert mean == pytest.approx((pixels / 255).mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx((pixels / 255).std((0, 2, 3)), rel=1e-12)


def test_statistics_of_a_constant_channel_can_be_divided_by() -> None:
    mean, std = channel_statistics([np.full((3, 1, 4, 4), 51, np.uint8)])
    assert mean == pytest.approx((0.2,))
    assert std == (1 / 255,)


def test_digest_is_of_content_and_split(tmp_path: Path, animals: Path) -> None:
    config = DataConfig(dataset=str(animals))
    first = prepare(config, tmp_path / "1", "known")
    assert prepare(config, tmp_path / "2", "known") == first
    assert (tmp_path / "1" / "manifest.json").read_bytes() == (tmp_path / "2" / "manifest.json").read_bytes()
    assert prepare(config, tmp_path / "3", "other").digest == first.digest, "the pixels are what counts"
    digests = {
        prepare(replace(config, **change), tmp_path / f"4{i}", "known").digest
        for i, change in enumerate(({"data_seed": 1}, {"val_fraction": 0.3}, {"image_size": 4}, {"probe_size": 2}))
    }
    (animals / "owl" / "000.png").write_bytes((animals / "owl" / "001.png").read_bytes())
    digests.add(prepare(config, tmp_path / "5", "known").digest)
    assert len(digests | {first.digest}) == 6


def test_source_digest_follows_files(animals: Path) -> None:
    config = DataConfig(dataset=str(animals))
    seen = [source_digest(config)]
    (animals / "cat" / "new.png").write_bytes((animals / "cat" / "000.png").read_bytes())
    seen.append(source_digest(config))
    (animals / "cat" / "new.png").write_bytes(b"edited")
    seen.append(source_digest(config))
    (animals / "cat" / "new.png").unlink()
    seen.append(source_digest(config))
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


def test_probe_is_a_stratified_part_of_val(tmp_path: Path) -> None:
    dataset = prepared(DataConfig(probe_size=100, val_fraction=0.3), tmp_path)
    val, probe = dataset.split("val"), dataset.probe()
    assert len(probe) == len(set(dataset.manifest.probe)) == 100
    assert max(dataset.manifest.probe) < len(val)
    counts = torch.bincount(probe.labels, minlength=10) - torch.bincount(val.labels, minlength=10) * 100 / len(val)
    assert counts.abs().max() < 1
    x, y = (torch.cat(part) for part in zip(*probe.batches(32), strict=True))
    x_val, y_val = (torch.cat(part) for part in zip(*val.batches(32), strict=True))
    assert torch.equal(x, x_val[list(dataset.manifest.probe)])
    assert torch.equal(y, y_val[list(dataset.manifest.probe)])
    small = prepare(DataConfig(probe_size=10_000), tmp_path / "small", "")
    assert small.probe == tuple(range(small.sizes["val"]))


def test_only_the_test_part_needs_its_file(tmp_path: Path, animals: Path) -> None:
    dataset = prepared(DataConfig(dataset=str(animals)), tmp_path / "out")
    (tmp_path / "out" / "test.safetensors").unlink()
    assert all(len(list(split.batches(64))) == 1 for split in (dataset.split("train"), dataset.split("val"), dataset.probe()))


def test_failed_preparation_leaves_no_data_set(tmp_path: Path, animals: Path) -> None:
    config = DataConfig(dataset=str(animals))
    prepare(config, tmp_path / "out", "")
    (animals / "dog" / "003.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"dog/003\.png"):
        prepare(config, tmp_path / "out", "")
    with pytest.raises(InputError, match="does not exist"):
        Dataset.open(tmp_path / "out")


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image_size.*GiB.*in_memory_gib"):
        prepare(DataConfig(in_memory_gib=0), tmp_path, "")


def test_unknown_part(tmp_path: Path, animals: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'train'"):
        prepared(DataConfig(dataset=str(animals)), tmp_path / "out").split("training")


def test_preparing_needs_no_torch(tmp_path: Path, animals: Path) -> None:
    code = f"""
import sys; from pathlib import Path; from rco.data.config import DataConfig; from rco.data.dataset import Dataset
from rco.data.prepare import prepare; from rco.data.sources.kinds import check_source, source_digest
config = DataConfig(dataset={str(animals)!r}); check_source(config)
prepare(config, Path({str(tmp_path / "out")!r}), source_digest(config))
Dataset.open(Path({str(tmp_path / "out")!r})).split("val")
assert not {{"torch", "torchvision", "sklearn", "boto3"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- batches --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["arrays", "files"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, animals: Path) -> Dataset:
    """The animals, prepared either way."""
    config = DataConfig(dataset=str(animals), in_memory_gib=0 if request.param == "files" else 2)
    result = prepared(config, tmp_path / "out")
    assert result.manifest.storage == request.param
    return result


def gathered(split: Split, batch_size: int = 4, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*split.batches(batch_size, **{"workers": 0, **options}), strict=True)
    return torch.cat(x), torch.cat(y)


def test_order_and_augmentation_are_functions_of_seed_and_epoch(dataset: Dataset) -> None:
    train = dataset.split("train")
    for kind in AUGMENTATIONS:
        first = gathered(train, seed=1, epoch=2, augment=kind)[0]
        assert torch.equal(first, gathered(train, seed=1, epoch=2, augment=kind)[0])
        assert torch.equal(first, gathered(train, seed=1, epoch=2, augment=kind, batch_size=19)[0]), "any batch size"
        assert not torch.equal(first, gathered(train, seed=1, epoch=3, augment=kind)[0])
        assert not torch.equal(first, gathered(train, seed=2, epoch=2, augment=kind)[0])


def test_training_shows_every_image_once_an_epoch_with_its_label(dataset: Dataset) -> None:
    train = dataset.split("train")
    x, y = gathered(train)
    shown, labels = gathered(train, seed=0)
    assert not torch.equal(shown, x)
    truth = {image.numpy().tobytes(): int(label) for image, label in zip(x, y, strict=True)}
    assert {image.numpy().tobytes(): int(label) for image, label in zip(shown, labels, strict=True)} == truth
    assert len(truth) == len(train)


def test_evaluation_is_in_order_and_whole(dataset: Dataset) -> None:
    val = dataset.split("val")
    x, y = gathered(val, batch_size=2)
    assert len(val) == 5
    assert torch.equal(y, val.labels)
    assert torch.equal(x, gathered(val, batch_size=100)[0])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_last_batch_of_one_image_is_left_out_of_training_only(dataset: Dataset) -> None:
    train = dataset.split("train")  # 19 images
    for batch_size, sizes in ((6, [6, 6, 6]), (5, [5, 5, 5, 4]), (1, [1] * 19), (18, [18]), (64, [19])):
        assert [len(y) for _, y in train.batches(batch_size, seed=0, workers=0)] == sizes
        assert train.num_batches(batch_size) == len(sizes)
    assert [len(y) for _, y in train.batches(6, workers=0)] == [6, 6, 6, 1]


def test_augmentation_needs_a_seed(dataset: Dataset) -> None:
    for options in ({"augment": "crop"}, {"augment": "cropp", "seed": 0}):
        with pytest.raises(InputError, match="augment"):
            dataset.split("train").batches(4, **options)


def test_batches_leave_the_global_generator_alone_and_can_be_trained_on(dataset: Dataset) -> None:
    state = torch.get_rng_state()
    with torch.inference_mode():
        gathered(dataset.split("train"), seed=0, augment="crop-flip")
    x, _ = gathered(dataset.split("train"), seed=0, augment="resized-crop-flip")
    assert torch.equal(torch.get_rng_state(), state)
    weight = torch.ones(1, requires_grad=True)
    (x * weight).sum().backward()
    assert weight.grad is not None


def test_files_and_arrays_are_the_same_to_training(tmp_path: Path, animals: Path) -> None:
    config = DataConfig(dataset=str(animals), image_size=6, probe_size=3)
    arrays = prepared(config, tmp_path / "arrays")
    streamed = prepared(config.with_values(in_memory_gib=0), tmp_path / "files")
    assert (streamed.manifest.mean, streamed.manifest.std) == (arrays.manifest.mean, arrays.manifest.std)
    for workers in (0, 2):
        x, y = gathered(streamed.split("train"), seed=3, augment="crop-flip", workers=workers)
        x_, y_ = gathered(arrays.split("train"), seed=3, augment="crop-flip")
        assert torch.equal(x, x_)
        assert torch.equal(y, y_)
    assert torch.equal(gathered(streamed.probe())[0], gathered(arrays.probe())[0])


def test_files_of_a_tar_stay_with_the_data_set(tmp_path: Path, animals: Path) -> None:
    path = tar_of(animals, tmp_path / "x.tar.gz", "around")
    prepare(DataConfig(dataset=str(path), in_memory_gib=0), tmp_path / "out", "")
    path.unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(gathered(Dataset.open(tmp_path / "moved").split("test"))[1]) == 6


def test_files_that_are_elsewhere_must_be_there(tmp_path: Path, animals: Path) -> None:
    dataset = prepared(DataConfig(dataset=str(animals), in_memory_gib=0), tmp_path / "out")
    animals.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="not on this machine"):
        gathered(dataset.split("train"))


@pytest.mark.parametrize("workers", [0, 1])
def test_file_damaged_after_preparation_is_named(workers: int, tmp_path: Path, animals: Path) -> None:
    dataset = prepared(DataConfig(dataset=str(animals), in_memory_gib=0), tmp_path / "out")
    for path in (animals / "owl").iterdir():
        path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(InputError, match=r"owl/\d+\.png.*not a readable image"):
        gathered(dataset.split("train"), workers=workers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gets_what_the_cpu_gets(dataset: Dataset) -> None:
    train = dataset.split("train")
    for kind in AUGMENTATIONS:
        (x, y), (x_gpu, y_gpu) = (gathered(train, seed=0, augment=kind, device=device, workers=1) for device in ("cpu", "cuda"))
        assert x_gpu.is_cuda
        assert torch.equal(y, y_gpu.cpu())
        assert torch.allclose(x, x_gpu.cpu(), atol=1e-4)


# --- augmentation ---------------------------------------------------------------------------------------------------------


def coded(count: int, size: int) -> torch.Tensor:
    """Images in which every pixel says where it was: (count, 1, size, size)."""
    return torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, 1, size, size).repeat(count, 1, 1, 1)


def offset(image: torch.Tensor, size: int) -> tuple[int, int, bool]:
    """How far a coded image was moved down and right, and whether it was mirrored."""
    ys, xs = (image > 0).nonzero()[0].tolist(), (image > 0).nonzero()[-1].tolist()
    first, last = int(image[tuple(ys)]) - 1, int(image[tuple(xs)]) - 1
    mirrored = ys[1] != xs[1] and (first % size < last % size) != (ys[1] < xs[1])
    column = size - 1 - ys[1] if mirrored else ys[1]
    return ys[0] - first // size, column - first % size, mirrored


@pytest.mark.parametrize(("kind", "padding"), [("shift", 1), ("crop", 4), ("crop-flip", 4)])
def test_crops_and_flips_are_distributed_as_torchvisions(kind: str, padding: int) -> None:
    count, size = 8100, 12
    moved = augment.augmented(coded(count, size), kind, np.random.default_rng(0))
    ours = Counter(offset(image[0], size) for image in moved)
    cells = (2 * padding + 1) ** 2 * (2 if kind == "crop-flip" else 1)
    assert len(ours) == cells
    assert stats.chisquare(list(ours.values())).pvalue > 1e-3
    torch.manual_seed(0)
    theirs = transforms.Compose(
        [transforms.RandomCrop(size, padding), transforms.RandomHorizontalFlip(0.5 * (kind == "crop-flip"))]
    )
    reference = Counter(offset(theirs(image)[0], size) for image in coded(4050, size))
    assert set(reference) == set(ours)
    table = [[counts[cell] for cell in sorted(ours)] for counts in (ours, reference)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_crop_and_flip_are_torchvisions_operations() -> None:
    images = torch.randint(0, 256, (9, 3, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([(i, 8 - i) for i in range(9)])
    which = torch.arange(9) % 2 == 0
    ours = augment.flip(augment.crop(images, 4, offsets), which)
    for image, (top, left), mirrored, result in zip(images, offsets.tolist(), which, ours, strict=True):
        expected = vision.crop(vision.pad(image, [4]), top, left, 6, 10)
        assert torch.equal(result, vision.hflip(expected) if mirrored else expected)


@pytest.mark.parametrize("shape", [(32, 32), (24, 48), (8, 96), (5, 5)])
def test_resized_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    count = 4000
    ours = augment.crop_boxes(np.random.default_rng(1).random((count, 22)), *shape)
    torch.manual_seed(0)
    image = torch.empty(1, *shape)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    features: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] + b[:, 2],
        lambda b: b[:, 1] + b[:, 3],
    ]
    assert all(stats.ks_2samp(feature(ours), feature(theirs)).pvalue > 1e-3 for feature in features)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()


def test_resized_crop_is_torchvisions_operation() -> None:
    images = torch.randint(0, 256, (64, 3, 10, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = augment.crop_boxes(np.random.default_rng(0).random((64, 22)), 10, 14)
    flips = torch.arange(64) % 2 == 0
    ours = augment.resized_crop(images, torch.from_numpy(boxes), flips)
    for image, box, mirrored, result in zip(images.float(), boxes.tolist(), flips, ours, strict=True):
        expected = vision.resized_crop(image, *box, [10, 14], antialias=False)
        assert torch.allclose(result, vision.hflip(expected) if mirrored else expected, atol=1e-2)


def test_flips_of_resized_crops_are_fair_and_independent_of_the_box() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).view(1, 1, 1, 16).repeat(4000, 1, 16, 1)
    x = augment.augmented(ramp, "resized-crop-flip", np.random.default_rng(0))
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, -1]).numpy()
    assert stats.binomtest(int(mirrored.sum()), 4000).pvalue > 1e-3
    width = (x.amax(dim=(1, 2, 3)) - x.amin(dim=(1, 2, 3))).numpy()
    assert stats.ks_2samp(width[mirrored], width[~mirrored]).pvalue > 1e-3
