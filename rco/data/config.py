"""The settings of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from rco.core.errors import InputError
from rco.core.plugins import AUTO, Settings, plugin_setting
from rco.core.settings import at_least, fraction, no_credentials, setting
from rco.data.sources.base import SOURCES, SourceKind

AUGMENTATIONS = ("none", "shift", "crop", "crop-flip", "resized-crop-flip")
LARGEST_IMAGE = 4096  # pixels, of the side to which images are brought


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Which data set, and how it is split. The validation part comes out of the training part; the test part stays whole."""

    dataset: str = setting(
        "digits",
        "digits | mnist | fashionmnist | cifar10 | cifar100 | svhn | an image folder, a tar, a CSV | an s3:// address of one",
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

    def __post_init__(self) -> None:
        _require_address(self.dataset)
        self.follow()
        self.source.require(self.dataset)
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


def _require_address(dataset: str) -> None:
    if not dataset.strip():
        raise InputError("dataset", dataset, "is empty", "Name a data set, a folder or an s3:// address")
    no_credentials("dataset", dataset)
