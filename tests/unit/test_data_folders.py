"""Data as people bring it: parts and classes under other names, odd files, and the account of what became of them."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.cli.main import main
from rco.config.parameters import RunConfig, read_value
from rco.core.errors import InputError, UnusedError
from rco.core.settings import items_of
from rco.data.config import DataConfig
from rco.data.dataset import Dataset, Manifest
from rco.data.decoding import Decoding
from rco.data.images import FileImages
from rco.data.prepare import prepare
from rco.data.sources.class_folders import lay_out
from rco.data.sources.class_order import natural_key, ordered_classes
from rco.data.sources.kinds import check_source, source_digest
from rco.data.sources.layout import Layout
from rco.data.sources.parts import part_folders, spelling_of

EVERY = pytest.mark.parametrize("in_memory_gib", [2, 0])


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: Any) -> Path:
    """A random image of (width, height) in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode).save(path, **options)
    return path


def folder(root: Path, counts: dict[str, int], suffix: str = ".png", **options: Any) -> Path:
    """So many different images in each of the folders."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(root / name / f"{i:03}{suffix}", 1000 * number + i, **options)
    return root


def paths(*folders: str, count: int = 3) -> list[str]:
    return [f"{name}/{i}.png" for name in folders for i in range(count)]


def parts_of(names: Sequence[str], **options: Any) -> dict[str, int]:
    layout, _ = lay_out("x", names, **options)
    return {part: len(rows) for part, rows in layout.parts.items()}


def refused(names: Sequence[str], **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        lay_out("x", names, **options)
    return str(caught.value)


def prepared(root: Path | str, out: Path, **options: Any) -> Manifest:
    config = DataConfig.of(dataset=str(root), **options)
    return prepare(config, out, source_digest(config))


def lines(manifest: Manifest) -> str:
    return "\n".join(manifest.account.lines)


# --- parts ----------------------------------------------------------------------------------------------------------------


class TestParts:
    @pytest.mark.parametrize(
        ("train", "val", "test"),
        [
            ("Training", "Validation", "Testing"),
            ("training_set", "validation_set", "test_set"),
            ("Train", "VALID", "TEST"),
            ("train", "dev", "test"),
            ("train_images", "val_images", "test_images"),
            ("TrainingData", "ValData", "TestData"),
            ("trainset", "valset", "testset"),
            ("seg_train", "seg_val", "seg_test"),
            ("birds_train", "birds_val", "birds_test"),
            ("train2017", "val2017", "test2017"),
            ("training", "validation", "evaluation"),
        ],
    )
    def test_usual_spellings(self, train: str, val: str, test: str) -> None:
        names = [*paths(f"{train}/cat", f"{train}/dog", count=4), *paths(f"{val}/cat", f"{val}/dog", count=3)]
        names += paths(f"{test}/cat", f"{test}/dog", count=2)
        layout, found = lay_out("x", names)
        assert layout.class_names == ("cat", "dog")
        assert {part: {found[row].split("/")[0] for row in rows} for part, rows in layout.parts.items()} == {
            "train": {train},
            "val": {val},
            "test": {test},
        }
        assert layout.notes.parts == {"train": train, "val": val, "test": test}

    @pytest.mark.parametrize("around", ["", "archive/", "a/b/"])
    def test_doubled_and_wrapped(self, around: str) -> None:
        names = paths(*(f"{around}{part}/{part}/{name}" for part in ("training_set", "test_set") for name in ("cat", "dog")))
        names.append(f"{around}training_set/preview.png")
        assert parts_of(names) == {"train": 6, "test": 6}

    def test_classes_stay_classes(self) -> None:
        for names in (("train_station", "test_tube"), ("valid", "invalid"), ("train", "plane"), ("testing_kit", "train_kid")):
            assert lay_out("x", paths(*names))[0].class_names == tuple(sorted(names))
        assert part_folders(["train_station", "test_tube"]) == {}
        assert spelling_of("training_set") == ("train", ())

    def test_val_alone_is_the_test_part_and_that_is_said(self) -> None:
        for name in ("val", "valid", "validation", "dev"):
            layout, _ = lay_out("x", paths("train/a", "train/b", f"{name}/a", f"{name}/b"))
            assert {part: len(rows) for part, rows in layout.parts.items()} == {"train": 6, "test": 6}
            assert layout.notes.remarks == (
                f"no test part: {name} is the test part, and validation images are held out from train",
            )

    def test_they_can_be_named(self) -> None:
        names = paths("fold1/a", "fold1/b", "fold2/a", "fold2/b", "rest/a")
        layout, _ = lay_out("x", names, part_folders=("train=fold1", "val=fold2"))
        assert {part: len(rows) for part, rows in layout.parts.items()} == {"train": 6, "val": 6}
        assert layout.notes.left_out == {"rest/ is none of the parts": ("rest/a/0.png", "rest/a/1.png", "rest/a/2.png")}
        assert lay_out("x", paths("train/x", "test/x", "train/y", "test/y"), part_folders=("none",))[0].class_names == (
            "test",
            "train",
        )
        assert "is no folder of x with images" in refused(names, part_folders=("train=fold9",))

    @pytest.mark.parametrize("words", [("train",), ("val=x",), ("train=a", "train=b"), ("train=a", "test=a"), ("train=",)])
    def test_names_that_cannot_be_read(self, words: tuple[str, ...]) -> None:
        with pytest.raises(InputError, match="part_folders"):
            DataConfig.of(dataset="x", part_folders=words)

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (paths("A/cat", "A/dog", "B/cat", "B/dog"), r"A, B all hold the same folders \(cat, dog\).*train=A,test=B, say"),
            (
                paths("cat/train", "cat/test", "dog/train", "dog/test"),
                "cat, dog each hold the parts test, train.*Turn it round",
            ),
            (paths("train", "test1"), "no train/CLASS folders: its 6 images lie in test1, train, parts by their names"),
            (paths("val/a", "val/b", "test/a", "test/b"), "no train/CLASS folders"),
            (paths("train/a", "Train/a", "train/b"), "has 2 folders that are the part train by their names: Train, train"),
            (paths("train/a", "train/b", "plane"), r"beside it 1 folder \(plane\): train may be .* part_folders = none"),
            (
                paths("data/train/a", "data/train/b", "data/test/a", "other/x"),
                "has the parts train, test in its folder data.*dataset = .../data",
            ),
            (
                [*paths("train/a", "train/b"), *paths("val")],
                r"the part val \(val/\) has 3 images that lie in no class folders.*CSV",
            ),
            (
                [*paths("train/n1/images", "train/n2/images", "val/images"), "val/val_annotations.txt"],
                r"the part val \(val/images/\) has 3 images .*\(val/val_annotations.txt may say what they are\).*Sort them",
            ),
            ([*paths("train/a", "train/b"), *paths("test/test")], r"the part test \(test/test/\) has 3 images"),
            (paths("train/a", "train/b", "test/c"), r"has 1 class \(c\) in test that train does not have"),
            ([*paths("."), "labels.csv"], r"if labels.csv lists them .* dataset = \.\.\./labels.csv"),
        ],
    )
    def test_what_would_be_a_guess_is_refused(self, names: list[str], words: str) -> None:
        import re

        said = refused(names)
        assert re.search(words, said), said
        assert len(said) < 700

    def test_folders_beside_the_parts_are_said(self) -> None:
        layout, _ = lay_out("x", paths("train/a", "train/b", "test/a", "test/b", "unlabelled/z"))
        assert list(layout.notes.left_out) == ["unlabelled/ is none of the parts"]

    def test_a_part_may_lack_classes(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"train/a": 8, "train/b": 8, "train/rare": 3, "test/a": 2, "test/b": 2, "val/a": 2})
        manifest = prepared(root, tmp_path / "out")
        assert manifest.class_names == ("a", "b", "rare")
        assert manifest.sizes == {"train": 19, "val": 2, "test": 4}
        assert "warning: test has no image of 1 class: 1 (rare)" in lines(manifest)
        assert "warning: val has no image of 2 classes: 2 (b, rare)" in lines(manifest)

    def test_an_empty_part_is_refused(self) -> None:
        with pytest.raises(InputError, match="has no image in its part test"):
            lay_out("x", paths("train/a", "train/b", "train/c", "test/c"), ("c",))


# --- files ----------------------------------------------------------------------------------------------------------------


class TestFiles:
    @pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".avif", ".webp", ".pnm"])
    def test_other_endings_are_read(self, tmp_path: Path, suffix: str) -> None:
        kind = {".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM"}.get(suffix)
        root = folder(tmp_path / "x", {"cat": 4, "dog": 4}, suffix, **({"format": kind} if kind else {}))
        assert check_source(DataConfig(dataset=str(root))).counts == {"train": 8}

    def test_what_is_left_out_is_counted_and_named(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"wrap/cat": 5, "wrap/dog": 5})
        picture(root / "preview.png", 99)
        (root / "wrap" / "owl").mkdir()
        for name in ("wrap/cat/1.heic", "wrap/cat/2.heic", "wrap/notes.txt", "wrap/dog/raw"):
            (root / name).write_bytes(b"x")
        for i in range(4):
            (root / "wrap" / "dog" / f"gone{i}.png").symlink_to(tmp_path / "nowhere.png")
        manifest = prepared(root, tmp_path / "out")
        assert manifest.sizes == {"train": 6, "val": 2, "test": 2}
        said = lines(manifest)
        for words in (
            "left out: 2 (wrap/cat/1.heic, wrap/cat/2.heic): they end in .heic, which is not read",
            "left out: 1 (wrap/notes.txt): they end in .txt",
            "left out: 1 (wrap/dog/raw): their names have no ending",
            "left out: 4 (wrap/dog/gone0.png, wrap/dog/gone1.png, wrap/dog/gone2.png, ...): links that lead nowhere",
            "left out: 1 (preview.png): images that lie in no class folder",
            "left out: 1 (wrap/owl): folders with nothing in them",
        ):
            assert words in said, said

    @pytest.mark.parametrize("how", ["heic", "link"])
    def test_a_class_does_not_vanish(self, tmp_path: Path, how: str) -> None:
        root = folder(tmp_path / "x", {"cat": 4, "dog": 4})
        (root / "owl").mkdir()
        for i in range(4):
            if how == "link":
                (root / "owl" / f"{i}.png").symlink_to(tmp_path / "nowhere.png")
            else:
                (root / "owl" / f"{i}.heic").write_bytes(b"x")
        with pytest.raises(InputError, match=r"1 class folder has \(owl\) no image that can be read: owl holds 4 pictures"):
            check_source(DataConfig(dataset=str(root)))

    @EVERY
    def test_all_broken_files_are_listed_before_training(self, tmp_path: Path, in_memory_gib: float) -> None:
        root = folder(tmp_path / "x", {f"{part}/{name}": 8 for part in ("train", "test") for name in ("cat", "dog")})
        for i, name in enumerate(("train/cat", "test/dog", "train/dog")):
            whole = (root / name / "003.png").read_bytes()
            (root / name / "003.png").write_bytes(whole[: len(whole) // 2] if i else b"")
        options = {"in_memory_gib": in_memory_gib}
        with pytest.raises(InputError) as caught:
            prepared(root, tmp_path / "out", **options)
        said = str(caught.value)
        assert "3 image files of 32 cannot be used" in said
        assert all(f"{name}/003.png is not a readable image" in said for name in ("train/cat", "test/dog", "train/dog"))
        assert "skip_broken = true" in said
        with pytest.raises(InputError, match="does not exist"):
            Dataset.open(tmp_path / "out")
        manifest = prepared(root, tmp_path / "skipped", skip_broken=True, **options)
        assert sum(manifest.sizes.values()) == 29
        said = "left out: 3 (train/cat/003.png, train/dog/003.png, test/dog/003.png): they cannot be read (skip_broken)"
        assert said in lines(manifest)
        assert "0x" not in (tmp_path / "skipped" / "manifest.json").read_text(), "the same bytes in every process"
        for name in ("train/cat", "test/dog", "train/dog"):
            (root / name / "003.png").unlink()
        if in_memory_gib:  # as if they had never been there; streamed files are known by their source's digest
            assert prepared(root, tmp_path / "without", **options).digest == manifest.digest

    def test_a_thousand_problems_fit_on_a_screen(self, tmp_path: Path) -> None:
        root = tmp_path / "x"
        for i in range(1000):
            path = root / "ab"[i % 2] / f"{'n' * 40}{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image")
        picture(root / "a" / "good.png")
        picture(root / "b" / "good.png")
        with pytest.raises(InputError) as caught:
            prepared(root, tmp_path / "out")
        assert "1,000 image files of 1,002 cannot be used" in str(caught.value)
        assert "and 995 more" in str(caught.value)
        assert len(str(caught.value)) < 1500

    def test_other_sizes_are_counted(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 5, "b": 5})
        for i in range(3):
            picture(root / "b" / f"wide{i}.png", size=(9, 8))
        with pytest.raises(InputError, match=r"3 of 13 images are not of the size of the first: .*9x8.*Set image_size"):
            prepared(root, tmp_path / "out")

    def test_too_few_are_left(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 5, "b": 3})
        (root / "b" / "000.png").write_bytes(b"")
        with pytest.raises(InputError, match="class 'b' has 2 images"):
            prepared(root, tmp_path / "out", skip_broken=True)

    def test_the_first_file_may_be_broken(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 5, "b": 5})
        (root / "a" / "000.png").write_bytes(b"")
        config = DataConfig.of(dataset=str(root), skip_broken=True)
        assert check_source(config).image_shape == (3, 8, 8)
        assert sum(prepare(config, tmp_path / "out", "x").sizes.values()) == 9


class TestChannels:
    def test_one_answer_everywhere(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 6}, mode="L")
        folder(root, {"b": 6})
        archive = shutil_zip(root, tmp_path / "x.zip")
        for dataset in (root, archive):
            config = DataConfig(dataset=str(dataset))
            assert check_source(config).image_shape == (3, 8, 8)
            assert prepare(config, tmp_path / f"out{Path(dataset).suffix}", "x").image_shape == (3, 8, 8)

    def test_they_can_be_chosen(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 6}, mode="L")
        folder(root, {"b": 6})
        for channels in (1, 3):
            config = DataConfig.of(dataset=str(root), image_channels=channels)
            assert (
                check_source(config).image_shape[0] == prepare(config, tmp_path / str(channels), "x").image_shape[0] == channels
            )
        with pytest.raises(InputError, match="image_channels = 2"):
            DataConfig.of(dataset=str(root), image_channels=2)


# --- pixels ---------------------------------------------------------------------------------------------------------------


def read(path: Path, size: int = 0, **decoding: Any) -> np.ndarray:
    return FileImages.of(path.parent, [path.name], size, Decoding(**decoding)).read(np.array([0]))[0]


class TestPixels:
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        """The same scene, stored in the way that each orientation means."""
        scene = np.zeros((48, 64, 3), np.uint8)
        scene[:24, :32], scene[:24, 32:], scene[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
        undo = {
            **{1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud},
            **{
                5: lambda x: x.swapaxes(0, 1),
                6: np.rot90,
                7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
                8: lambda x: np.rot90(x, 3),
            },
        }
        image = Image.fromarray(np.ascontiguousarray(undo[orientation](scene)))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"x{suffix}", exif=exif, **({"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}))
        pixels = read(tmp_path / f"x{suffix}")
        assert pixels.shape == (3, 48, 64)
        for y, x in ((8, 8), (8, 56), (40, 8), (40, 56)):
            assert np.abs(pixels[:, y, x].astype(int) - scene[y, x]).max() < 24

    def test_turned_images_are_counted(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 5, "b": 5})
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(root / "a" / "turned.png", 5, exif=exif)
        assert "images that turned upright" not in lines(prepared(folder(tmp_path / "y", {"a": 5, "b": 5}), tmp_path / "o"))
        assert "upright as EXIF says: 1 (a/turned.png)" in lines(prepared(root, tmp_path / "out"))

    @EVERY
    def test_classes_that_differ_in_transparency_alone(self, tmp_path: Path, in_memory_gib: float) -> None:
        root = tmp_path / "x"
        for i in range(6):
            for name, box in (("left", (0, 4)), ("right", (4, 8))):
                pixels = np.zeros((8, 8, 4), np.uint8)
                pixels[:, box[0] : box[1], 3] = 200 + i
                (root / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / name / f"{i}.png")
        manifest = prepared(root, tmp_path / "out", in_memory_gib=in_memory_gib)
        assert "have transparency, laid on white: 12" in lines(manifest)
        x, y = next(Dataset.open(tmp_path / "out").split("train").batches(64, workers=0))
        dark = x.mean(dim=1)[:, 0, :4].mean(dim=1) < x.mean(dim=1)[:, 0, 4:].mean(dim=1)
        assert dark.tolist() == (y == 0).tolist()
        other = prepared(root, tmp_path / "black", in_memory_gib=in_memory_gib, alpha_background="#ff0000")
        assert other.digest != manifest.digest

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
    def test_alpha_in_every_mode(self, tmp_path: Path, mode: str) -> None:
        image = Image.new("RGBA", (8, 8), (10, 10, 10, 255))
        image.paste((10, 10, 10, 0), (0, 0, 4, 8))
        if mode == "P":
            image = image.convert("RGB").quantize(4)
            image.putdata([0] * 32 + [1] * 32)
            image.putpalette([10, 10, 10] * 2)
            image.save(tmp_path / "x.png", transparency=1)
            image = None
        elif mode == "L":
            Image.fromarray(np.repeat([[10, 99]], 4, 1).repeat(8, 0).astype(np.uint8)).save(tmp_path / "x.png", transparency=99)
        else:
            image.convert(mode).save(tmp_path / "x.png")
        seen = {tuple(v) for v in read(tmp_path / "x.png", alpha_background="blue").reshape(-1, 64).T.tolist()}
        blue = (29,) if mode == "L" else (0, 0, 255)
        assert blue in seen
        assert len(seen) == 2

    def test_opaque_images_are_as_they_are(self, tmp_path: Path) -> None:
        picture(tmp_path / "rgb.png")
        Image.open(tmp_path / "rgb.png").convert("RGBA").save(tmp_path / "x.png")
        assert np.array_equal(read(tmp_path / "x.png"), read(tmp_path / "rgb.png"))

    def test_fits(self, tmp_path: Path) -> None:
        pixels = np.full((20, 40, 3), 128, np.uint8)
        pixels[:, :10], pixels[:, 30:] = 255, 0
        Image.fromarray(pixels).save(tmp_path / "x.png")
        crop, pad, squash = (read(tmp_path / "x.png", 20, fit=fit)[0] for fit in ("crop", "pad", "squash"))
        assert (crop == 128).all()
        assert (pad[:4] == 0).all()
        assert (pad[-4:] == 0).all()
        assert pad[10, 0] == 255
        assert pad[10, 10] == 128
        assert (squash[:, 0] == 255).all()
        assert (squash[:, -1] == 0).all()

    def test_a_fit_is_said_and_needs_a_size(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 6, "b": 6}, size=(8, 12))
        assert "not square, and cropped to their centre" in lines(prepared(root, tmp_path / "out", image_size=6))
        assert "squashed (image_fit = squash): 12" in lines(prepared(root, tmp_path / "o", image_size=6, image_fit="squash"))
        with pytest.raises(UnusedError, match="image_fit = 'pad': means nothing without image_size"):
            DataConfig.of(dataset=str(root), image_fit="pad")
        with pytest.raises(InputError, match=r"image_fit.*Did you mean 'crop'"):
            DataConfig.of(dataset=str(root), image_fit="crops", image_size=4)
        for name, value in (("alpha_background", "grün"), ("max_megapixels", 0), ("white_level", 70_000)):
            with pytest.raises(InputError, match=name):
                DataConfig.of(dataset=str(root), **{name: value})

    def test_streamed_files_are_decoded_as_they_were_prepared(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"a": 6, "b": 6}, size=(8, 12))
        options = {"image_size": 6, "image_fit": "pad"}
        arrays, streamed = (prepared(root, tmp_path / str(gib), in_memory_gib=gib, **options) for gib in (2, 0))
        assert streamed.decoding == Decoding(fit="pad")
        assert (arrays.mean, arrays.std) == (streamed.mean, streamed.std)
        x, x_ = (next(Dataset.open(tmp_path / gib).split("train").batches(64, workers=0))[0] for gib in ("2", "0"))
        assert x.equal(x_)


# --- the account ----------------------------------------------------------------------------------------------------------


class TestAccount:
    @EVERY
    def test_duplicates(self, tmp_path: Path, in_memory_gib: float) -> None:
        root = folder(tmp_path / "x", {f"{p}/{c}": 6 for p in ("train", "val", "test") for c in "ab"})
        for i in range(4):
            (root / "test" / "a" / f"copy{i}.png").write_bytes((root / "train" / "a" / f"00{i}.png").read_bytes())
        (root / "val" / "b" / "other.png").write_bytes((root / "train" / "a" / "000.png").read_bytes())
        manifest = prepared(root, tmp_path / "out", in_memory_gib=in_memory_gib)
        about = manifest.account
        assert {pair: counted.count for pair, counted in about.duplicates.items()} == {
            "test and val": 1,
            "test and train": 4,
            "val and train": 1,
        }
        assert about.relabelled.count == 3
        said = lines(manifest)
        assert (
            "warning: the same image in test and train: 4 (test/a/copy0.png, test/a/copy1.png, test/a/copy2.png, ...)" in said
        )
        assert "warning: the same image with different labels: 3 (" in said

    def test_says_where_parts_come_from_and_how_large_classes_are(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"Training/a": 9, "Training/b": 5, "Testing/a": 2, "Testing/b": 2})
        manifest = prepared(root, tmp_path / "out")
        said = lines(manifest)
        assert "train: 11 images (Training); 4 (b) to 7 (a) of a class" in said
        assert "test: 4 images (Testing); 2 of every class" in said
        assert "val: 3 images (held out of Training, val_fraction 0.2)" in said
        assert "classes, in the order of their numbers (sorted): 2 (a, b)" in said
        assert not [line for line in manifest.account.lines if line.startswith("warning")]
        assert Dataset.open(tmp_path / "out").manifest == manifest

    def test_older_manifests_have_none(self, tmp_path: Path) -> None:
        manifest = prepared(folder(tmp_path / "x", {"a": 6, "b": 6}), tmp_path / "out")
        path = tmp_path / "out" / "manifest.json"
        words = json.loads(path.read_text())
        del words["account"]
        assert "decoding" not in words
        path.write_text(json.dumps(words))
        older = Dataset.open(tmp_path / "out").manifest
        assert older.account.lines == []
        assert older.digest == manifest.digest

    def test_a_task_says_it_and_notices_a_source_that_has_changed(self, tmp_path: Path, caplog: Any) -> None:
        from rco.core.settings import jsonable
        from rco.tasks.data import prepare_data
        from rco.tasks.process import log, show_progress
        from rco.tasks.settings import DataSettings

        root = folder(tmp_path / "x", {f"{p}/{c}": 6 for p in ("train", "test") for c in "ab"})
        (root / "test" / "a" / "copy.png").write_bytes((root / "train" / "a" / "000.png").read_bytes())
        (root / "train" / "notes.txt").touch()
        config = DataConfig(dataset=str(root))
        given = jsonable(DataSettings(data=config, source_digest=source_digest(config)))
        show_progress()
        log.addHandler(caplog.handler)
        try:
            figures = prepare_data(given, dataset=tmp_path / "out")
        finally:
            log.removeHandler(caplog.handler)
        assert figures["duplicates_test_and_train"] == 1
        assert figures["left_out"] == 1
        assert "warning: the same image in test and train: 1 (test/a/copy.png);" in caplog.text
        picture(root / "train" / "a" / "new.png", 77)
        with pytest.raises(InputError, match="has changed since it was checked"):
            prepare_data(given, dataset=tmp_path / "out")


class TestInspect:
    def test_says_what_a_training_would_see(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"Training/a": 9, "Training/b": 5, "Testing/a": 2, "Testing/b": 2})
        before = sorted(tmp_path.rglob("*"))
        done = CliRunner().invoke(main, ["inspect", str(root)])
        assert done.exit_code == 0, done.output
        assert "2 classes of 8x8 colour images (source folder)" in done.output
        assert "test: 4 images (Testing); 2 of every class" in done.output
        asked = CliRunner().invoke(main, ["inspect", str(root), "--json", "--image-size", "4"])
        found = json.loads(asked.output)
        assert (found["image_shape"], found["sizes"]) == ([3, 4, 4], {"train": 11, "val": 3, "test": 4})
        assert found["account"]["parts"]["test"]["source"] == "Testing"
        assert sorted(tmp_path.rglob("*")) == before

    def test_refuses_as_a_run_would(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["inspect", str(folder(tmp_path / "x", {"train": 3, "test": 3}))])
        assert done.exit_code == 2
        assert "no train/CLASS folders" in done.output
        done = CliRunner().invoke(main, ["inspect", "x.pt", "--image-size", "4"])
        assert done.exit_code == 2
        assert "image_size = 4: means nothing for a checkpoint" in done.output


# --- what is easily overlooked -----------------------------------------------------------------------------------------------


def test_images_deeper_than_their_class_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {"train/animals": 6, "train/vehicles/car": 6, "test/animals": 2, "test/vehicles/car": 2})
    said = lines(prepared(root, tmp_path / "out"))
    first = "train/vehicles/car/000.png, train/vehicles/car/001.png, train/vehicles/car/002.png, ..."
    assert f"in folders inside a class folder: 8 images ({first}), of the class of the outer one" in said
    assert "inside a class folder" not in lines(prepared(folder(tmp_path / "y", {"a": 6, "b": 6}), tmp_path / "flat"))


def test_classes_that_are_spelt_alike(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # as a Mac writes it
    root = folder(tmp_path / "x", {composed: 6, decomposed: 6, "tea": 6})
    said = lines(prepared(root, tmp_path / "out"))
    assert "warning: names that differ in case or in the Unicode form of accents alone are several classes: " in said
    assert r"'cafe\u0301', 'caf\xe9'" in said
    for a, b in ((composed, decomposed), ("Cat", "cat")):
        root = folder(tmp_path / a, {f"train/{a}": 4, "train/dog": 4, f"test/{b}": 4, "test/dog": 4})
        with pytest.raises(InputError, match="that train spells otherwise") as caught:
            prepared(root, tmp_path / "other")
        assert f"{b!a} there, {a!a} in train" in str(caught.value)


def test_further_frames_and_pages_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {"a": 6, "b": 6})
    frames = [Image.new("RGB", Image.open(root / "a" / "000.png").size, colour) for colour in ("red", "blue")]
    for name in ("anim.gif", "pages.tif", "anim.png", "anim.webp"):
        frames[0].save(root / "b" / name, save_all=True, append_images=frames[1:])
    frames[0].save(root / "b" / "one.gif")
    said = lines(prepared(root, tmp_path / "out"))
    assert "images that have several frames or pages, of which the first is read: 4 (" in said
    assert "one.gif" not in said


def test_paths_of_windows_in_a_list(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", {"a": 6, "b": 6})
    (root / "list.csv").write_text("path,label\na\\000.png,a\nb\\000.png,b\n")
    with pytest.raises(InputError, match="Write paths with /, not with backslashes"):
        check_source(DataConfig(dataset=str(root / "list.csv")))


# --- zip ------------------------------------------------------------------------------------------------------------------


def shutil_zip(root: Path, path: Path, around: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, around + file.relative_to(root).as_posix())
    return path


class TestZip:
    @pytest.mark.parametrize("around", ["", "set/"])
    @EVERY
    def test_holds_what_the_folder_holds(self, tmp_path: Path, around: str, in_memory_gib: float) -> None:
        root = folder(tmp_path / "x", {"cat": 6, "dog": 6})
        (root / "notes.txt").write_text("x")
        archive = shutil_zip(root, tmp_path / "x.ZIP", around)
        one, two = (DataConfig(dataset=str(d), in_memory_gib=in_memory_gib) for d in (root, archive))
        assert two.source.plugin_name == "zip"
        assert check_source(one) == check_source(two)
        made = [prepare(config, tmp_path / str(i), "x") for i, config in enumerate((one, two))]
        if in_memory_gib or not around:  # of streamed files, the paths count
            assert made[0].digest == made[1].digest
        assert f"left out: 1 ({around}notes.txt)" in lines(made[1])
        archive.unlink()
        assert len(next(Dataset.open(tmp_path / "1").split("test").batches(64, workers=0))[1]) == made[1].sizes["test"]
        assert [p.name for p in (tmp_path / "1").iterdir() if p.name.startswith(".")] == [], "leftovers"

    def test_names_from_windows(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"cat": 6, "dog": 6})
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for file in sorted(root.rglob("*.png")):
                info = zipfile.ZipInfo(file.relative_to(root).as_posix().replace("/", "\\"))
                info.create_system = 0
                archive.writestr(info, file.read_bytes())
        assert check_source(DataConfig(dataset=str(tmp_path / "x.zip"))).class_names == ("cat", "dog")

    def test_names_without_an_encoding_are_told_of(self, tmp_path: Path, said: Callable[[], str]) -> None:
        config = DataConfig(dataset=str(tmp_path / "x.zip"))
        archive = shutil_zip(folder(tmp_path / "utf-8", {"\u732b": 6, "\u72d7": 6}), tmp_path / "x.zip")
        assert check_source(config).class_names == ("\u72d7", "\u732b")
        assert "encoding" not in said()
        shutil_zip(folder(tmp_path / "gbk", {"c_": 6, "d_": 6}), archive)
        packed = archive.read_bytes()  # as Windows in China packs: two bytes a sign, and nothing that says so
        archive.write_bytes(packed.replace(b"c_/", "\u732b/".encode("gbk")).replace(b"d_/", "\u72d7/".encode("gbk")))
        assert len(check_source(config).class_names) == 2
        assert "x.zip has 12 names without a word on their encoding, read as code page 437, such as " in said()

    def test_what_is_refused(self, tmp_path: Path) -> None:
        root, path = folder(tmp_path / "x", {"cat": 6, "dog": 6}), tmp_path / "x.zip"
        config = DataConfig(dataset=str(path))

        def said() -> str:
            for act in (check_source, lambda config: prepare(config, tmp_path / "out", "x")):
                with pytest.raises(InputError) as caught:
                    act(config)
            return str(caught.value)

        path.write_bytes(b"PK no zip")
        assert "is not a readable ZIP file" in said()
        shutil_zip(root, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert "is not a readable ZIP file" in said()
        info = zipfile.ZipInfo("cat/link.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        path.write_bytes(whole)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, "/etc/passwd")
        assert "has a member that is a link: 'cat/link.png'" in said()
        path.write_bytes(whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"))
        assert "has encrypted files" in said()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("cat/0.png", b"x")
        assert "has files that are packed with LZMA, such as 'cat/0.png'" in said()
        at = whole.rindex(b"cat/000.png")  # in the directory
        path.write_bytes(whole[:at] + b"\0" + whole[at + 1 :])
        assert "is not a readable ZIP file (it has a member without a name)" in said()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("cat/0.png", "dog/0.png"):
                archive.writestr(name, bytes(2**20))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RCO_MOST_UNPACKED", "0.001")
            assert "it may be a bomb" in said()

    def test_nothing_is_written_elsewhere(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"cat": 6, "dog": 6})
        shutil_zip(root, tmp_path / "x.zip")
        with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
            for name in ("../owned.png", "cat/../../owned.png", *(f"{tmp_path}/owned{i}.png" for i in range(3))):
                archive.writestr(zipfile.ZipInfo(name), (root / "cat" / "000.png").read_bytes())
        prepared(tmp_path / "x.zip", tmp_path / "out", in_memory_gib=0)
        found = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("owned*")}
        assert found == {("out", "images")}


# --- order and normalisation ----------------------------------------------------------------------------------------------


class TestClassOrder:
    NAMES = ("1", "10", "11", "2", "3")

    def test_sorted_and_natural(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", dict.fromkeys(self.NAMES, 4))
        for order, names in ((None, self.NAMES), ("sorted", self.NAMES), ("natural", ("1", "2", "3", "10", "11"))):
            flat = {"dataset": str(root), **({"class_order": order} if order else {})}
            config = RunConfig.from_flat(flat).data
            manifest = prepare(config, tmp_path / f"out{order}", "x")
            assert manifest.class_names == check_source(config).class_names == names
        assert "(natural): 5 (1, 2, 3, ...)" in lines(manifest)
        y = next(Dataset.open(tmp_path / "outnatural").split("train").batches(64, workers=0))[1]
        assert y.bincount().tolist() == [2] * 5

    @given(st.lists(st.integers(0, 500), unique=True, min_size=1), st.text("ab_", max_size=2))
    @settings(max_examples=50, deadline=None)
    def test_natural_is_the_order_of_numbers(self, numbers: list[int], prefix: str) -> None:
        names = [f"{prefix}{number}" for number in sorted(numbers)]
        shuffled = sorted(names)
        assert sorted(shuffled, key=natural_key) == names

    @pytest.mark.parametrize(
        "text",
        [
            "10\n1\n3\n2\n11\n",
            '["10", "1", "3", "2", "11"]',
            '{"1": 1, "10": 0, "2": 3, "3": 2, "11": 4}',
            '{"0": ["n10", "10"], "1": "1", "2": "3", "3": "2", "4": "11"}',
        ],
    )
    def test_files(self, tmp_path: Path, text: str) -> None:
        root = folder(tmp_path / "x", dict.fromkeys(self.NAMES, 4))
        (tmp_path / "order").write_text(text)
        config = DataConfig.of(dataset=str(root), class_order=(str(tmp_path / "order"),))
        if "n10" in text:
            with pytest.raises(InputError, match="lacks 1 classes"):
                check_source(config)
            return
        assert check_source(config).class_names == ("10", "1", "3", "2", "11")
        before = source_digest(config)
        (tmp_path / "order").write_text("1\n10\n11\n2\n3\n")
        assert source_digest(config) != before
        assert source_digest(DataConfig(dataset=str(root))) == source_digest(
            DataConfig.of(dataset=str(root), class_order=("natural",))
        )

    @pytest.mark.parametrize(
        ("order", "words"),
        [
            (("1", "2"), r"lacks 3 classes \('10', '11', '3'\) of x"),
            ((*NAMES, "12"), r"names 1 classes \('12'\), which x does not have"),
            ((*NAMES, "1"), "names '1' twice"),
            (("alphabetical",), "is neither an order nor a file"),
        ],
    )
    def test_what_is_refused(self, order: tuple[str, ...], words: str) -> None:
        with pytest.raises(InputError, match=words):
            ordered_classes(self.NAMES, order, "x")

    def test_a_form_hands_numbers_over_as_floats(self) -> None:
        assert ordered_classes(self.NAMES, ("3.0", "2.0", "1.0", "10.0", "11.0"), "x") == ("3", "2", "1", "10", "11")

    def test_means_nothing_for_digits(self) -> None:
        with pytest.raises(UnusedError, match=r"class_order.*means nothing with dataset = digits"):
            RunConfig.from_flat({"class_order": "natural"})


class TestNormalisation:
    @EVERY
    def test_as_the_teacher_had_it(self, tmp_path: Path, in_memory_gib: float) -> None:
        root = folder(tmp_path / "x", {"a": 6, "b": 6})
        flat = {"dataset": str(root), "image_mean": "imagenet", "image_std": "0.5", "in_memory_gib": in_memory_gib}
        manifest = prepare(RunConfig.from_flat(flat).data, tmp_path / "out", "x")
        assert (manifest.mean, manifest.std) == ((0.485, 0.456, 0.406), (0.5,) * 3)
        assert "normalisation: mean imagenet, deviation 0.5, as image_mean and image_std say" in lines(manifest)
        x, _ = next(Dataset.open(tmp_path / "out").split("train").batches(64, workers=0))
        ours = prepared(root, tmp_path / "own", in_memory_gib=in_memory_gib)
        assert ours.digest != manifest.digest
        x_, _ = next(Dataset.open(tmp_path / "own").split("train").batches(64, workers=0))
        for c in range(3):
            pixels = x_[:, c] * ours.std[c] + ours.mean[c]
            assert (x[:, c] * manifest.std[c] + manifest.mean[c]).allclose(pixels, atol=1e-5)

    @pytest.mark.parametrize(
        ("flat", "words"),
        [
            ({"image_mean": "0.5"}, r"image_std = \[\]: is left out"),
            ({"image_std": "imagenet"}, r"image_mean = \[\]: is left out"),
            ({"image_mean": "123.7,116.3,103.5", "image_std": "58,57,57"}, "is of pixels in 0..255. Divide by 255"),
            ({"image_mean": "a", "image_std": "1"}, "is neither numbers nor imagenet"),
            ({"image_mean": "0.1,0.2", "image_std": "0.1,0.2,0.3"}, "has 3 numbers, and image_mean 2"),
            ({"image_mean": "0.5", "image_std": "0"}, "has a number that no such pixels have"),
            ({"image_mean": "nan", "image_std": "1"}, "has a number that no such pixels have"),
        ],
    )
    def test_what_is_refused(self, flat: dict[str, str], words: str) -> None:
        with pytest.raises(InputError, match=words):
            RunConfig.from_flat(flat)

    def test_another_number_of_channels(self, tmp_path: Path) -> None:
        config = DataConfig(image_mean=("imagenet",), image_std=("imagenet",))
        with pytest.raises(InputError, match=r"has 3 numbers, and the images 1 channel.*image_channels = 3"):
            prepare(config, tmp_path, "x")

    def test_numbers_are_welcome(self) -> None:
        assert DataConfig.of(image_mean=(0.5,), image_std=(0.25,)).image_mean == ("0.5",)  # type: ignore[comparison-overlap]
        assert read_value("image_mean", [0.5, 0.25]) == ["0.5", "0.25"]


# --- lists as text --------------------------------------------------------------------------------------------------------


class TestLists:
    @pytest.mark.parametrize(
        ("text", "items"),
        [
            ("a,b", ["a", "b"]),
            ("[1, 2]", ["1", "2"]),
            ('"cat, small",dog', ["cat, small", "dog"]),
            ('["cat, small", "dog"]', ["cat, small", "dog"]),
            ('"say ""hi""",b', ['say "hi"', "b"]),
            ("a[1],b", ["a[1]", "b"]),
            ("", []),
            (" , ", []),
        ],
    )
    def test_quotes_keep_commas(self, text: str, items: list[str]) -> None:
        assert items_of(text) == items

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1), max_size=4))
    @settings(max_examples=100, deadline=None)
    def test_any_names_can_be_given(self, names: list[str]) -> None:
        quoted = ",".join('"' + name.replace('"', '""') + '"' for name in names)
        assert items_of(quoted) == names

    def test_open_quotes_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"open_classes.*an item with a comma in it has quotes around it"):
            RunConfig.from_flat({"open_classes": '"cat,dog'})

    def test_a_class_with_a_comma_can_be_open(self, tmp_path: Path) -> None:
        root = folder(tmp_path / "x", {"cat, small": 6, "dog": 6, "owl": 6})
        flat = {"dataset": str(root), "open_classes": '"cat, small"', "teacher_embedding_dim": 4, "student_embedding_dim": 4}
        assert check_source(RunConfig.from_flat(flat).data).class_names == ("dog", "owl")


def test_layouts_without_rows_are_as_if_they_had_never_been() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    layout = Layout("x", ("a", "b"), labels, {"train": np.arange(8)})
    assert layout.without(np.array([1, 6])).parts["train"].tolist() == [0, 2, 3, 4, 5, 7]
