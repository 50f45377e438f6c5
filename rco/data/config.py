"""The settings of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from rco.core.errors import InputError
from rco.core.plugins import AUTO, Settings, plugin_setting
from rco.core.settings import at_least, fraction, no_credentials, setting
from rco.data.normalisation import require_numbers
from rco.data.sources.base import SOURCES, SourceKind
from rco.data.sources.files import ImageFiles

LARGEST_IMAGE = 4096  # pixels, of the side to which images are brought


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Which data set, and how it is split. The validation part comes out of the training part; the test part stays whole."""

    dataset: str = setting(
        "digits",
        "digits | mnist | fashionmnist | cifar10 | cifar100 | svhn | "
        "an image folder, a tar, a ZIP file, a CSV | an s3:// address of one",
    )
    source: SourceKind = plugin_setting(SOURCES, AUTO, "what kind of source the data set is")
    image_size: int = setting(
        0, "resize images to this many pixels square (0: keep their size, which then must be one for all)"
    )
    val_fraction: float = setting(0.2, "part of the training images held out for validation (stratified)")
    test_fraction: float = setting(0.2, "part held out for the test if the source has no test split of its own")
    probe_size: int = setting(
        256, "validation images on which hardness is measured (stratified; fewer if validation is smaller)"
    )
    data_seed: int = setting(0, "seed of the splits")
    open_classes: tuple[str, ...] = setting(
        (), "classes (names, or numbers from 0) that nothing is trained on: evaluate verifies and identifies them by embeddings"
    )

    image_mean: tuple[str, ...] = setting(
        (),
        "mean of each channel, of pixels in 0..1, that is subtracted: numbers | imagenet (empty: of the training images); as "
        "the teacher was trained, if it comes from elsewhere",
    )
    image_std: tuple[str, ...] = setting(
        (), "deviation of each channel that is divided by: numbers | imagenet (empty: of the training images)"
    )
    in_memory_gib: float = setting(
        2.0, "a data set up to so many GiB is held in memory; of a larger one, image files are read as they are needed"
    )

    def __post_init__(self) -> None:
        _require_address(self.dataset)
        self.follow()
        self.source.require(self.dataset)
        if isinstance(self.source, ImageFiles):
            self.source.require_size(self.image_size)
        for name in ("image_mean", "image_std"):  # numbers are welcome, too
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        require_numbers(self.image_mean, self.image_std)
        at_least("in_memory_gib", self.in_memory_gib, 0)
        at_least("image_size", self.image_size, 0)
        if self.image_size > LARGEST_IMAGE:
            raise InputError(
                "image_size", self.image_size, f"is more than {LARGEST_IMAGE}", "Images are made square, of this side"
            )
        fraction("val_fraction", self.val_fraction)
        fraction("test_fraction", self.test_fraction)
        at_least("probe_size", self.probe_size, 1)
        at_least("data_seed", self.data_seed, 0)
        if len(set(self.open_classes)) < len(self.open_classes):
            raise InputError("open_classes", self.open_classes, "names a class twice", "Name each once")

    def with_values(self, **values: Any) -> Self:
        _require_address(values.get("dataset", self.dataset))  # before anything can quote what is in it
        return super().with_values(**values)


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How the teacher takes its images, where it is not as the student does."""

    image_size: int = setting(
        0, "pixels of the teacher's images, of the same view as the student's (0: the route's, else image_size)"
    )
    image_mean: tuple[str, ...] = setting(
        (), "mean by which the teacher's images are normalised: numbers | imagenet (empty: the route's, else image_mean)"
    )
    image_std: tuple[str, ...] = setting(
        (), "deviation by which the teacher's images are normalised: numbers | imagenet (empty: the route's, else image_std)"
    )
    image_crop: float = setting(
        0.0,
        "part of each side of the view, around its centre, that the teacher sees, such as 0.875 (0: the route's, else all)",
    )

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):  # numbers are welcome, too
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        require_numbers(self.image_mean, self.image_std, "teacher_")
        at_least("image_size", self.image_size, 0)
        if self.image_size > LARGEST_IMAGE:
            raise InputError(
                "image_size", self.image_size, f"is more than {LARGEST_IMAGE}", "Images are made square, of this side"
            )
        if self.image_crop != 0 and not 0.1 <= self.image_crop <= 1:
            raise InputError(
                "image_crop", self.image_crop, "is not a part from 0.1 to 1", "Give 0.875, for example, or 0 for all"
            )


def _require_address(dataset: str) -> None:
    if not dataset.strip():
        raise InputError("dataset", dataset, "is empty", "Name a data set, a folder or an s3:// address")
    no_credentials("dataset", dataset)
