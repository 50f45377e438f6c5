"""Where files live: an address to a local path and back. The only module that imports boto3.

An address is a path, `file:///path` or `s3://bucket/key`. An S3 address names one object if there is one of exactly that
key, and otherwise the folder of all objects below `key/`. Any S3-compatible store will do; the environment describes it as
it does for the AWS tools:

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL   the store, if it is not AWS itself (failing these: MLFLOW_S3_ENDPOINT_URL)
    AWS_REGION, AWS_DEFAULT_REGION          its region
    AWS_ACCESS_KEY_ID and the like          credentials: boto3's whole chain (profiles, web identity, instance roles)
    RCO_S3_ADDRESSING_STYLE                 ours: path | virtual | auto (the default: path wherever an endpoint is set)
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from rco.checkpoint import atomically
from rco.errors import InputError, choice

_S3 = "s3://"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
_REQUESTS = 16  # in flight, over all files together
_PART_BYTES = 16 * 2**20
_HASHED_BYTES = 4 * 2**30
_READERS = 4
_WAYS = 100  # to one folder, over links: two in each folder of a chain make millions
_DEEPEST = 200


class Entry(NamedTuple):
    """One object: its name relative to the address listed, size in bytes, the store's tag of its content, and its key."""

    name: str
    size: int
    etag: str
    key: str


def is_remote(uri: str) -> bool:
    """Whether `uri` lies in an object store."""
    return uri.startswith(_S3)


def local_path(uri: str) -> Path:
    """The path that a local address means (`~` expanded).

    Raises:
        InputError: an address of another kind.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise InputError("uri", f"{scheme}://...", "is not a kind of address known here", "Give a path or an s3:// address")
    try:
        if separator:
            parts = urlsplit(uri)
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise InputError("uri", uri, "names a host, not a path", "Write file:///path, with three slashes")
            path = Path(unquote(parts.path))
        else:
            path = Path(uri).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no right to look, a circle of links, no such user's home
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("uri", uri, f"is no path that can be looked at ({reason})", "Check path and permissions") from None
    return path


def listing(uri: str) -> list[Entry]:
    """What lies at an S3 address, sorted by name; the address of one object lists that object.

    Raises:
        InputError: nothing there, or the store cannot be used (bucket, credentials, endpoint).
    """
    with _explained(uri):
        return _listed(_client(), uri)


def exists(uri: str) -> bool:
    """Whether there is a file, a folder or an object at `uri`.

    Raises:
        InputError: the store cannot be used; a bucket that does not exist counts as that.
    """
    if not is_remote(uri):
        return local_path(uri).exists()
    with _explained(uri):
        return next(_entries(_client(), uri), None) is not None


def fingerprint(uri: str) -> str:
    """Hex sha256 that changes with what lies at `uri`: any file edited, added, removed or renamed.

    Of an S3 address it is made of names, sizes and ETags, without a download; of a local one, see `content_digest`.

    Raises:
        InputError: as `listing`, or there is nothing at a local address.
    """
    if not is_remote(uri):
        path = _existing(uri)
        names = files(path) if path.is_dir() else [path.name]
        with _readable(path):
            return content_digest(path if path.is_dir() else path.parent, names)
    return _digest((entry.name, f"{entry.size} {entry.etag}") for entry in listing(uri))


def files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below `folder`, sorted. Links are followed, but not back to a folder above.

    Raises:
        InputError: a folder that cannot be read, or links that lead to one folder in too many ways.
    """
    found: list[str] = []
    visits: Counter[str] = Counter()

    def visit(path: str, prefix: str, above: frozenset[str]) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                kind = _kind(entry)
                if kind == "file":
                    found.append(prefix + entry.name)
                elif kind == "folder" and (real := os.path.realpath(entry.path)) not in above:
                    visits[real] += 1
                    if visits[real] > _WAYS or len(above) > _DEEPEST:
                        problem = (
                            "is reached through links in too many ways" if visits[real] > _WAYS else "is nested too deeply"
                        )
                        raise InputError("uri", entry.path, problem, "Make the data set of plain files and folders")
                    visit(entry.path, f"{prefix}{entry.name}/", above | {real})

    with _readable(folder):
        visit(str(folder), "", frozenset({os.path.realpath(folder)}))
    return sorted(found)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else ""
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return ""
        raise


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else str(path)
        raise InputError("uri", where, f"cannot be read ({error.strerror})", "Check its permissions") from None


def content_digest(folder: Path, names: Sequence[str]) -> str:
    """Hex sha256 over the names and contents of files in `folder`; above 4 GiB in all, over names, sizes and times of change.

    Args:
        names: relative to `folder`, sorted.
    """
    stats = [os.stat(folder / name) for name in names]
    if sum(stat.st_size for stat in stats) > _HASHED_BYTES:
        return _digest((name, f"{stat.st_size} {stat.st_mtime_ns}") for name, stat in zip(names, stats, strict=True))

    def hashes(start: int) -> list[str]:
        return [_sha256(folder / name) for name in names[start : start + 256]]

    with ThreadPoolExecutor(_READERS) as pool:
        contents = [content for part in pool.map(hashes, range(0, len(names), 256)) for content in part]
    return _digest(zip(names, contents, strict=True))


def fetch(uri: str, into: Path) -> Path:
    """Bring `uri` to this machine. Files appear under their names only when whole.

    Returns:
        a local address: its path, untouched; an object: `into`/NAME; a folder: `into`, which then has the folder's content.

    Raises:
        InputError: nothing there, the store cannot be used, or a key that would be written outside `into`.
    """
    if not is_remote(uri):
        return _existing(uri)
    bucket, key = _split(uri)
    with _explained(uri):
        client = _client()
        # Every name is judged before the first byte arrives.
        targets = {entry.key: _inside(into, entry, uri) for entry in _listed(client, uri)}
        for folder in {target.parent for target in targets.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        with _transfers(client) as transfers:
            # The transfer manager itself writes to a temporary name beside the target and renames.
            for future in [transfers.download(bucket, source, str(target)) for source, target in targets.items()]:
                future.result()
    return targets.get(key, into)


def upload(path: Path, uri: str) -> None:
    """Copy a file or a folder's content to `uri` (a file to an address that ends in `/`: under its own name).

    Raises:
        InputError: `path` does not exist, or the store cannot be used.
    """
    if path.is_dir():
        base, sources = uri, {name: path / name for name in files(path)}
    elif path.is_file():
        base, _, name = (uri + path.name if uri.endswith("/") else uri).rpartition("/")
        sources = {name: path}
    else:
        raise InputError("path", str(path), "does not exist", "Check the path; was the step that writes it run?")
    if not is_remote(uri):
        for name, source in sources.items():
            atomically(local_path(base) / name, partial(shutil.copyfile, source))
        return
    bucket, prefix = _split(base)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    with _explained(uri), _transfers(_client()) as transfers:
        for future in [transfers.upload(str(source), bucket, prefix + name) for name, source in sources.items()]:
            future.result()


def _existing(uri: str) -> Path:
    path = local_path(uri)
    if not path.exists():
        raise InputError("uri", uri, "does not exist", "Check the path")
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**18):
            digest.update(block)
    return digest.hexdigest()


def _digest(items: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in items:
        digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\n")
    return digest.hexdigest()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if "@" in bucket:
        raise InputError("uri", f"{_S3}...", "holds credentials", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not is_remote(uri) or not bucket:
        raise InputError("uri", uri, "is not an s3:// address", f"Write {_S3}BUCKET/KEY")
    return bucket, key


def _entries(client: Any, uri: str) -> Iterator[Entry]:
    bucket, key = _split(uri)
    if key and not key.endswith("/"):
        # Of all keys that begin with `key`, it is itself the first in order. A HEAD request would need fewer rights, but
        # some stores answer it for a folder as well.
        for found in client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", ()):
            if found["Key"] == key:
                yield Entry(key.rpartition("/")[2], found["Size"], found["ETag"], key)
                return
        key += "/"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):  # what some tools leave to mark a folder
                yield Entry(found["Key"].removeprefix(key), found["Size"], found["ETag"], found["Key"])


def _listed(client: Any, uri: str) -> list[Entry]:
    found = sorted(_entries(client, uri))
    if not found:
        raise InputError("uri", uri, "holds no objects", "Check the key and its spelling")
    return found


def _inside(into: Path, entry: Entry, uri: str) -> Path:
    if any(part in ("", ".", "..") for part in entry.name.split("/")) or "\\" in entry.name:
        raise InputError("uri", uri, f"has the key {entry.key!r}, which is no safe file name", "Rename or remove that object")
    return into / entry.name


def _endpoint() -> str | None:
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)


def _client() -> Any:
    import boto3
    from botocore.config import Config

    endpoint = _endpoint()
    options: dict[str, Any] = {
        "retries": {"mode": "standard"},
        "connect_timeout": 10,
        "max_pool_connections": _REQUESTS,
    }
    if endpoint:
        # Since 1.36 boto3 adds checksums that some stores do not understand.
        options |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    if style := os.environ.get("RCO_S3_ADDRESSING_STYLE"):
        choice("RCO_S3_ADDRESSING_STYLE", style, ("auto", "path", "virtual"))
        options["s3"] = {"addressing_style": style}
    # boto3 itself reads AWS_DEFAULT_REGION only.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    # A session of our own: boto3's default session keeps the credentials of its first use.
    return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=Config(**options))


def _transfers(client: Any) -> Any:
    """A transfer manager: one pool of threads for all files, big ones in parts, none whole in memory."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    return create_transfer_manager(
        client,
        TransferConfig(
            max_concurrency=_REQUESTS,
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            preferred_transfer_client="classic",  # the other one would not use the settings of `client`
        ),
    )


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what the user can mend into InputError, in our own words: the originals may quote secrets, hence `from None`."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("NoSuchBucket", "InvalidBucketName"):
            raise InputError("uri", uri, "names a bucket that does not exist", "Check the name, or create it") from None
        if code in ("NoSuchKey", "404"):
            raise InputError("uri", uri, "does not exist in the store", "Check the key and its spelling") from None
        if status in (401, 403):
            raise InputError(
                "uri",
                uri,
                f"is refused by the store ({code})",
                "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights to list, read and write there",
            ) from None
        raise
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        url = urlsplit(_endpoint() or "")
        where = f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}" if url.hostname else "AWS"
        raise InputError(
            "uri", uri, f"cannot be reached at {where} ({type(error).__name__})", f"Check {_ENDPOINTS[0]} and the network"
        ) from None
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
    ) as error:
        raise InputError(
            "uri",
            uri,
            f"needs credentials ({type(error).__name__})",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role that boto3 finds",
        ) from None
    except boto.BotoCoreError as error:
        raise InputError(
            "uri", uri, f"cannot be used ({type(error).__name__})", "Check the bucket's name and the AWS_ variables"
        ) from None
