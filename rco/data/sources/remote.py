"""Image folders and tars in an S3 store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rco.core.storage.addresses import is_remote
from rco.core.storage.contents import fingerprint, listing
from rco.core.storage.transfer import fetch
from rco.data.config import DataConfig
from rco.data.images import header
from rco.data.sources.base import Info, Source, as_dataset
from rco.data.sources.folder import files_source, info_of, lay_out
from rco.data.sources.tar import check_tar, extract, has_tar_name


class Remote:
    """An S3 address of an image folder or of a tar."""

    names = ()

    def accepts(self, config: DataConfig) -> bool:
        return is_remote(config.dataset)

    def digest(self, config: DataConfig) -> str:
        """See `rco.core.storage.contents.fingerprint`."""
        with as_dataset():
            return fingerprint(config.dataset)

    def check(self, config: DataConfig) -> Info:
        """A tar is downloaded for that, to a temporary folder; of a folder, one image."""
        address = config.dataset
        with as_dataset(), TemporaryDirectory() as scratch:
            if has_tar_name(address):
                return check_tar(config, fetch(address, Path(scratch)))
            layout, paths = lay_out(address, (entry.name for entry in listing(address)), config.open_classes)
            first = fetch(f"{address.rstrip('/')}/{paths[0]}", Path(scratch))
            return info_of(layout, header(first, paths[0]), config)

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
            with as_dataset():
                root = fetch(config.dataset, Path(temporary) / "fetched")
            if has_tar_name(config.dataset):
                root = extract(root, Path(temporary) / "extracted", config.dataset)
            yield files_source(config, root)
