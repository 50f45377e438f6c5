"""The 8x8 digits that ship with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np

from rco.data.config import DataConfig
from rco.data.images import ArrayImages
from rco.data.sources.base import Info, Source, laid_out, open_labels, resized

_DIGITS = tuple("0123456789")


class Digits:
    """The data set `digits`."""

    names = ("digits",)

    def accepts(self, config: DataConfig) -> bool:
        return config.dataset == "digits"

    def digest(self, config: DataConfig) -> str:
        """The version of the package that brings them."""
        return f"scikit-learn {version('scikit-learn')}"

    def check(self, config: DataConfig) -> Info:
        held_out = open_labels("digits", _DIGITS, config.open_classes)
        names = tuple(name for label, name in enumerate(_DIGITS) if label not in held_out)
        return Info(len(names), names, resized((1, 8, 8), config), {"train": 1797})

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        layout = laid_out("digits", _DIGITS, labels, {"train": np.arange(len(labels))}, config.open_classes)
        yield Source(layout, ArrayImages(pixels, config.image_size))
