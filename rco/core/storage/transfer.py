"""Files to an address and back.

An object appears whole or not at all, and of two writers of one key the last one wins. An upload records the file's sha256 in
the object's metadata, and sends a checksum with every part for the store to check; a download is compared with what was
recorded. What fails because of the network, the store's load or damaged bytes is tried again, a few times, after random and
growing waits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rco.core.errors import InputError
from rco.core.files import atomically, sha256_of
from rco.core.storage.addresses import S3, Entry, bucket_and_key, existing_path, is_remote, local_path
from rco.core.storage.local import list_files
from rco.core.storage.retries import DamagedError, code_and_status, with_retries
from rco.core.storage.s3 import REQUESTS, connection, for_each, list_objects

log = logging.getLogger(__name__)

_SHA256 = "sha256"  # in an object's metadata
_PART_BYTES = 16 * 2**20
_LONGEST_NAME = 255  # bytes
_PROGRESS_SECONDS = 10.0
_NAMED = 5  # files in a message
_AT_ONCE = 4096  # files that are given to the pool at once


def fetch(uri: str, into: Path, only: Collection[str] | None = None) -> Path:
    """Bring `uri` to this machine. Files appear under their names only when whole, and as their sha256 was recorded.

    Args:
        only: of a folder in a store, these files; None: all.

    Returns:
        a local address: its path, untouched; an object: `into`/NAME; a folder: `into`, which then has the folder's content.

    Raises:
        InputError: nothing there, the store cannot be used, content that stays damaged, or a key that would be written
            outside `into`.
    """
    if not is_remote(uri):
        return existing_path(uri)
    bucket, key = bucket_and_key(uri)
    with connection(uri) as client:
        entries = [entry for entry in list_objects(client, uri) if only is None or entry.name in only]
        # Every name is judged before the first byte arrives.
        targets = {entry.key: _inside(into, entry, uri) for entry in entries}
        if both := {target.relative_to(into) for target in targets.values()} & {
            folder for target in targets.values() for folder in target.relative_to(into).parents
        }:
            problem = f"has an object {min(both).as_posix()!r}, and others below that name"
            raise InputError("uri", uri, problem, "Rename or remove that object: a file system has one or the other")
        for folder in {target.parent for target in targets.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        progress = _Progress(f"fetching {uri}", entries)

        def one(entry: Entry) -> None:
            target = targets[entry.key]
            temporary = target.with_name(f".fetch-{secrets.token_hex(8)}")
            try:
                with_retries(
                    f"{S3}{bucket}/{entry.key}", lambda: _download(client, transfers, bucket, entry, temporary, progress)
                )
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            progress.finished()

        # On failure the transfers are cancelled first, so that nobody waits for them.
        with ThreadPoolExecutor(REQUESTS) as pool, _transfers(client) as transfers:
            for_each(pool, entries, one)
    return targets.get(key, into)


class Known(NamedTuple):
    """A file in a store, and what it must hold.

    Attributes:
        name: relative to the address of its folder.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: bytes


def fetch_known(uri: str, into: Path, files: Sequence[Known]) -> None:
    """Bring files of a folder in a store to `into`. Each appears under its name only when it holds what it must.

    Nothing is listed, and one request brings a file: there may be millions. Files that are there already, to be gone on with
    after an interruption, are the caller's to leave out.

    Raises:
        ChangedError: files are gone or hold something else, of which the first few are named.
        InputError: the store cannot be used; or a name that would be written outside `into`.
    """
    bucket, key = bucket_and_key(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    entries = [Entry(file.name, file.size, "", prefix + file.name) for file in files]
    progress = _Progress(f"fetching {uri}", entries)
    changed: list[str] = []
    with connection(uri) as client:

        def one(pair: tuple[Entry, Known]) -> None:
            entry, file = pair
            target = _inside(into, entry, uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".fetch-{secrets.token_hex(8)}")
            arrived: set[bytes] = set()
            try:
                with_retries(
                    f"{S3}{bucket}/{entry.key}", lambda: _receive(client, bucket, entry.key, file, temporary, progress, arrived)
                )
                os.replace(temporary, target)
            except _OtherContentError as error:
                changed.append(f"{file.name} {error}")
                if len(changed) >= _NAMED:
                    raise
            finally:
                temporary.unlink(missing_ok=True)
            progress.finished()

        pairs = list(zip(entries, files, strict=True))
        with ThreadPoolExecutor(REQUESTS) as pool, suppress(_OtherContentError):
            for start in range(0, len(pairs), _AT_ONCE):  # what waits in the pool takes memory
                for_each(pool, pairs[start : start + _AT_ONCE], one)
    if changed:
        count = f"{len(changed)}{' or more' if len(changed) >= _NAMED else ''}"
        problem = f"has changed: {count} of {len(files):,} files ({'; '.join(sorted(changed)[:_NAMED])})"
        raise ChangedError("uri", uri, problem, "Put them back as they were")


class ChangedError(InputError):
    """What lies at an address is not what was recorded."""


class _OtherContentError(Exception):
    """With what is another than was recorded."""


def _receive(client: Any, bucket: str, key: str, file: Known, path: Path, progress: _Progress, arrived: set[bytes]) -> None:
    """Write an object to `path`.

    Args:
        arrived: digests of what has arrived in earlier attempts and was not right: twice the same is no damage on the way.

    Raises:
        _OtherContentError: there is no such object, or another.
    """
    from botocore.exceptions import ClientError

    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if code_and_status(error)[0] in ("NoSuchKey", "404"):
            raise _OtherContentError("is gone") from None
        raise
    with closing(answer["Body"]) as body, progress.watch() as watch:
        if answer["ContentLength"] != file.size:
            raise _OtherContentError(f"has {answer['ContentLength']:,} bytes, and had {file.size:,}")
        digest = hashlib.sha256()
        with open(path, "wb") as output:
            for block in body.iter_chunks(2**20):
                output.write(block)
                digest.update(block)
                watch.on_progress(len(block))
        if digest.digest() != file.sha256:
            if digest.digest() in arrived:
                raise _OtherContentError("holds something else")
            arrived.add(digest.digest())
            remedy = "Look at what lies between here and the store"
            raise DamagedError("uri", f"{S3}{bucket}/{key}", "arrives damaged: its sha256 is not the recorded one", remedy)


def upload(path: Path, uri: str) -> None:
    """Copy a file or a folder's content to `uri` (a file to an address that ends in `/`: under its own name).

    Each file appears there whole or not at all, those of a folder in no particular order.

    Raises:
        InputError: `path` does not exist, or the store cannot be used.
    """
    if path.is_dir():
        base, sources = uri, {name: path / name for name in list_files(path)}
    elif path.is_file():
        base, _, name = (uri + path.name if uri.endswith("/") else uri).rpartition("/")
        sources = {name: path}
    else:
        raise InputError("path", str(path), "does not exist", "Check the path; was the step that writes it run?")
    if not is_remote(uri):
        for name, source in sources.items():
            atomically(local_path(base) / name, partial(shutil.copyfile, source))
        return
    bucket, prefix = bucket_and_key(base)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    extra = _upload_arguments()
    with connection(uri) as client:
        entries = [Entry(name, source.stat().st_size, "", prefix + name) for name, source in sources.items()]
        progress = _Progress(f"uploading to {uri}", entries)

        def one(entry: Entry) -> None:
            source = sources[entry.name]
            arguments = {**extra, "Metadata": {**extra.get("Metadata", {}), _SHA256: sha256_of(source)}}

            def attempt() -> None:
                with progress.watch() as watch:
                    transfers.upload(str(source), bucket, entry.key, arguments, [watch]).result()

            with_retries(f"{S3}{bucket}/{entry.key}", attempt)
            progress.finished()

        with ThreadPoolExecutor(REQUESTS) as pool, _transfers(client) as transfers:
            for_each(pool, entries, one)


def _download(client: Any, transfers: Any, bucket: str, entry: Entry, path: Path, progress: _Progress) -> None:
    def damaged(difference: str) -> DamagedError:
        remedy = "Upload it again; look at what lies between here and the store"
        return DamagedError("uri", f"{S3}{bucket}/{entry.key}", f"arrives damaged: {difference}", remedy)

    about = client.head_object(Bucket=bucket, Key=entry.key, ChecksumMode="ENABLED")
    with progress.watch() as watch:
        transfers.download(bucket, entry.key, str(path), subscribers=[watch]).result()
        if path.stat().st_size != about["ContentLength"]:
            raise damaged(f"it is {path.stat().st_size} bytes long, the store says {about['ContentLength']}")
        expected = _recorded_sha256(about)
        if expected and (actual := sha256_of(path)) != expected:
            raise damaged(f"its sha256 is {actual[:12]}..., recorded was {expected[:12]}...")


def _recorded_sha256(about: dict[str, Any]) -> str | None:
    """The sha256 of a whole object, in hex, if its uploader or the store has recorded one."""
    recorded = str(about.get("Metadata", {}).get(_SHA256, "")).lower()
    if re.fullmatch("[0-9a-f]{64}", recorded):  # others may write something else under this name
        return recorded
    checksum = about.get("ChecksumSHA256", "")  # of an upload in parts: that of the parts' checksums, and how many they are
    try:
        return base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None
    except ValueError:
        return None  # not a checksum


def _inside(into: Path, entry: Entry, uri: str) -> Path:
    name = entry.name.encode(errors="backslashreplace")  # of half a character
    unfit = any(part in (b"", b".", b"..") or len(part) > _LONGEST_NAME for part in name.split(b"/"))
    if unfit or b"\\" in name or b"\0" in name:
        raise InputError(
            "uri", uri, f"has the key {entry.key!r}, which is not a safe file name", "Rename or remove that object"
        )
    return into / entry.name


def _upload_arguments() -> dict[str, Any]:
    text = os.environ.get("MLFLOW_S3_UPLOAD_EXTRA_ARGS") or "{}"
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(
            "MLFLOW_S3_UPLOAD_EXTRA_ARGS", "...", "is not a JSON object", 'Write it as {"ServerSideEncryption": "aws:kms"}'
        )
    return arguments


def _transfers(client: Any) -> Any:
    """A transfer manager: one pool of threads for all files, big ones in parts, none whole in memory."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    return create_transfer_manager(
        client,
        TransferConfig(
            max_concurrency=REQUESTS,
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            num_download_attempts=3,
            preferred_transfer_client="classic",  # the other one would not use the settings of `client`
        ),
    )


class _Progress:
    """Logs how far a transfer is, every few seconds; of a short one, nothing."""

    def __init__(self, what: str, entries: Sequence[Entry]) -> None:
        self._what, self._files, self._bytes = what, len(entries), sum(entry.size for entry in entries)
        self._files_done = self._bytes_done = 0
        self._last_logged = time.monotonic()
        self._lock = threading.Lock()

    @contextmanager
    def watch(self) -> Iterator[_Watch]:
        """Count what one attempt transfers, unless it fails."""
        watch = _Watch(self)
        try:
            yield watch
        except BaseException:
            self.add(-watch.count)
            raise

    def add(self, count: int) -> None:
        """Count bytes that are transferred; negative: that are lost."""
        with self._lock:
            self._bytes_done += count
            now = time.monotonic()
            if now - self._last_logged < _PROGRESS_SECONDS:
                return
            self._last_logged = now
            done, files_done = self._bytes_done, self._files_done
        share = f"{100 * done / self._bytes:.0f} % of {self._bytes / 1e9:.2f} GB" if self._bytes else ""
        log.info("%s: %s%s", self._what, share, f", {files_done} of {self._files} files" if self._files > 1 else "")

    def finished(self) -> None:
        """Count one file as transferred."""
        with self._lock:
            self._files_done += 1


class _Watch:
    """The bytes of one attempt, as the transfer manager reports them."""

    def __init__(self, progress: _Progress) -> None:
        self._progress, self.count = progress, 0

    def on_progress(self, bytes_transferred: int, **about: Any) -> None:
        """Negative if bytes have to be sent again."""
        self.count += bytes_transferred
        self._progress.add(bytes_transferred)
