"""The 8x8 digits that ship with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rco.data.sources.base import SOURCES, Info, Source, SourceKind, resized

if TYPE_CHECKING:
    from rco.data.config import DataConfig

_DIGITS = tuple("0123456789")


@SOURCES.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(SourceKind):
    """The data set `digits`."""

    summary: ClassVar[str] = "the embedded set digits"
    names: ClassVar[tuple[str, ...]] = ("digits",)

    def digest(self, config: DataConfig) -> str:
        """The version of the package that brings them."""
        return f"scikit-learn {version('scikit-learn')}"

    def check(self, config: DataConfig) -> Info:
        from rco.data.sources.layout import open_labels

        held_out = open_labels("digits", _DIGITS, config.open_classes)
        names = tuple(name for label, name in enumerate(_DIGITS) if label not in held_out)
        return Info(len(names), names, resized((1, 8, 8), config), {"train": 1797})

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        import numpy as np
        from sklearn.datasets import load_digits

        from rco.data.images import ArrayImages
        from rco.data.sources.layout import laid_out

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        layout = laid_out("digits", _DIGITS, labels, {"train": np.arange(len(labels))}, config.open_classes)
        yield Source(layout, ArrayImages(pixels, config.image_size))
