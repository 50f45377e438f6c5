"""The headers of images in a store: how they will be read, before they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from rco.core.errors import InputError
from rco.core.storage.contents import beginnings
from rco.core.storage.transfer import fetch
from rco.data.decoding import Decoding
from rco.data.image_file import Shape, header
from rco.data.images import common_shape
from rco.data.sources.files import ImageFiles

_AT_ONCE = 256
_BYTES = 2**16  # nearly all headers are shorter; for the others, the whole image is fetched


def shape_of(root: str, paths: Sequence[str], kind: ImageFiles) -> Shape:
    """The shape (C, H, W) as which images are read: the first one's header is looked at, and, while all are grey, the next.

    Args:
        root: their address in a store, without a slash at its end.
        paths: relative to it.

    Raises:
        InputError: the store cannot be used, or no image can be read.
    """
    return common_shape(_headers(root, paths, kind.decoding), kind.image_channels)


def _headers(root: str, paths: Sequence[str], decoding: Decoding) -> Iterator[Callable[[], Shape]]:
    for start in (0, *range(1, len(paths), _AT_ONCE)):
        some = paths[start : start + _AT_ONCE] if start else paths[:1]
        for path, content in zip(some, beginnings(root, some, _BYTES), strict=True):
            yield partial(_header, root, path, content, decoding)


def _header(root: str, path: str, content: bytes, decoding: Decoding) -> Shape:
    try:
        return header(BytesIO(content), path, decoding)
    except InputError:
        if len(content) < _BYTES:
            raise
    with TemporaryDirectory() as scratch:
        return header(fetch(f"{root}/{path}", Path(scratch)), path, decoding)
