"""Where files live: an address to a local path and back. The only module that imports boto3.

An address is a path, `file:///path` or `s3://bucket/key`. An S3 address names one object if there is one of exactly that
key, and otherwise the folder of all objects below `key/`. Any S3-compatible store will do; it is described as to the AWS
tools, by the environment or by the profile in ~/.aws/config:

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL   the store, if it is not AWS itself
    AWS_REGION, AWS_DEFAULT_REGION          its region
    AWS_ACCESS_KEY_ID and the like          credentials: boto3's whole chain (profiles, web identity, instance roles)
    AWS_CA_BUNDLE                           certificates to trust, in place of those that come with botocore
    RCO_S3_ADDRESSING_STYLE                 ours: path | virtual | auto (the default: path wherever an endpoint is set)

MLflow's variables are understood; where both are set, the ones above win over MLFLOW_S3_ENDPOINT_URL and
MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE. MLFLOW_S3_IGNORE_TLS, MLFLOW_S3_UPLOAD_EXTRA_ARGS and MLFLOW_S3_EXPECTED_BUCKET_OWNER mean
what they mean to MLflow.

An object appears whole or not at all, and of two writers of one key the last one wins. An upload records the file's sha256 in
the object's metadata, and sends a checksum with every part for the store to check; a download is compared with what was
recorded. What fails because of the network, the store's load or damaged bytes is tried again, a few times, after random and
growing waits.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import random
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from rco.core.errors import InputError, choice
from rco.core.files import atomically, sha256_of
from rco.core.settings import has_credentials

T = TypeVar("T")

log = logging.getLogger(__name__)

_S3 = "s3://"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
_STYLES = ("RCO_S3_ADDRESSING_STYLE", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE")
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_SHA256 = "sha256"  # in an object's metadata
_REQUESTS = 16  # in flight, over all files together
_PART_BYTES = 16 * 2**20
_HASHED_BYTES = 4 * 2**30
_READERS = 4
_WAYS = 100  # to one folder, over links: two in each folder of a chain make millions
_DEEPEST = 200
_LONGEST_NAME = 255  # bytes
_ATTEMPTS = 4  # at a whole file; each of its requests is sent up to three times, a broken stream is read up to three times
_FIRST_WAIT = 1.0  # seconds
_PROGRESS_SECONDS = 10.0
# Answers that another attempt may change, beside those of the 5xx kind.
_DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch")
_PASSING = (*_DAMAGED, "RequestTimeout", "SlowDown", "Throttling", "TooManyRequests")
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


class DamagedError(InputError):
    """What lies at an address is not what was put there."""


class _DamagedError(Exception):
    """What arrived is not what was sent."""


class Entry(NamedTuple):
    """One object or file.

    Attributes:
        name: relative to the address listed.
        size: in bytes.
        etag: the store's tag of its content; of a file, its time of change.
        key: of the object; the path of a file.
    """

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
    """What lies at an address, sorted by name; the address of one object or file lists that one.

    Raises:
        InputError: nothing there, or the store cannot be used (bucket, credentials, endpoint).
    """
    if is_remote(uri):
        with _store(uri) as client:
            return _listed(client, uri)
    path = _existing(uri)
    found = [path / name for name in files(path)] if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    return [
        Entry(one.relative_to(base).as_posix(), stat.st_size, str(stat.st_mtime_ns), str(one))
        for one, stat in ((one, one.stat()) for one in found)
    ]


def exists(uri: str) -> bool:
    """Whether there is a file, a folder or an object at `uri`.

    Raises:
        InputError: the store cannot be used; a bucket that does not exist counts as that.
    """
    if not is_remote(uri):
        return local_path(uri).exists()
    with _store(uri) as client:
        return _patiently(uri, lambda: next(_entries(client, uri), None)) is not None


def remove(uri: str) -> None:
    """Remove what lies at `uri`: a file or an object, or else a folder with all that is in it. Nothing there: nothing to do.

    Raises:
        InputError: the address of a whole bucket, or the store cannot be used.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return
    bucket, key = _split(uri)
    if not key.strip("/"):
        raise InputError("uri", uri, "names a whole bucket, which is not removed", f"Write {_S3}BUCKET/KEY")
    with _store(uri) as client:
        keys = _patiently(uri, lambda: [entry.key for entry in _entries(client, uri)])
        with ThreadPoolExecutor(_REQUESTS) as pool:
            # One by one: not every store knows how to delete several.
            _all(pool, keys, lambda key: _patiently(uri, lambda: client.delete_object(Bucket=bucket, Key=key)))


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
        return [sha256_of(folder / name) for name in names[start : start + 256]]

    with ThreadPoolExecutor(_READERS) as pool:
        contents = [content for part in pool.map(hashes, range(0, len(names), 256)) for content in part]
    return _digest(zip(names, contents, strict=True))


def fetch(uri: str, into: Path) -> Path:
    """Bring `uri` to this machine. Files appear under their names only when whole, and as their sha256 was recorded.

    Returns:
        a local address: its path, untouched; an object: `into`/NAME; a folder: `into`, which then has the folder's content.

    Raises:
        InputError: nothing there, the store cannot be used, content that stays damaged, or a key that would be written
            outside `into`.
    """
    if not is_remote(uri):
        return _existing(uri)
    bucket, key = _split(uri)
    with _store(uri) as client:
        entries = _listed(client, uri)
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
                _patiently(
                    f"{_S3}{bucket}/{entry.key}", lambda: _download(client, transfers, bucket, entry, temporary, progress)
                )
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            progress.finished()

        # On failure the transfers are cancelled first, so that nobody waits for them.
        with ThreadPoolExecutor(_REQUESTS) as pool, _transfers(client) as transfers:
            _all(pool, entries, one)
    return targets.get(key, into)


def upload(path: Path, uri: str) -> None:
    """Copy a file or a folder's content to `uri` (a file to an address that ends in `/`: under its own name).

    Each file appears there whole or not at all, those of a folder in no particular order.

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
    extra = _upload_arguments()
    with _store(uri) as client:
        entries = [Entry(name, source.stat().st_size, "", prefix + name) for name, source in sources.items()]
        progress = _Progress(f"uploading to {uri}", entries)

        def one(entry: Entry) -> None:
            source = sources[entry.name]
            arguments = {**extra, "Metadata": {**extra.get("Metadata", {}), _SHA256: sha256_of(source)}}

            def attempt() -> None:
                with progress.watch() as watch:
                    transfers.upload(str(source), bucket, entry.key, arguments, [watch]).result()

            _patiently(f"{_S3}{bucket}/{entry.key}", attempt)
            progress.finished()

        with ThreadPoolExecutor(_REQUESTS) as pool, _transfers(client) as transfers:
            _all(pool, entries, one)


def _download(client: Any, transfers: Any, bucket: str, entry: Entry, path: Path, progress: _Progress) -> None:
    about = client.head_object(Bucket=bucket, Key=entry.key, ChecksumMode="ENABLED")
    with progress.watch() as watch:
        transfers.download(bucket, entry.key, str(path), subscribers=[watch]).result()
        if path.stat().st_size != about["ContentLength"]:
            raise _DamagedError(f"it is {path.stat().st_size} bytes long, the store says {about['ContentLength']}")
        expected = _recorded_sha256(about)
        if expected and (actual := sha256_of(path)) != expected:
            raise _DamagedError(f"its sha256 is {actual[:12]}..., recorded was {expected[:12]}...")


def _recorded_sha256(about: dict[str, Any]) -> str | None:
    """The sha256 of a whole object, in hex, if its uploader or the store has recorded one."""
    recorded = str(about.get("Metadata", {}).get(_SHA256, "")).lower()
    if re.fullmatch("[0-9a-f]{64}", recorded):  # others may write something else under this name
        return recorded
    checksum = about.get("ChecksumSHA256", "")  # of an upload in parts: that of the parts' checksums, and how many they are
    try:
        return base64.b64decode(checksum).hex() if checksum and "-" not in checksum else None
    except ValueError:
        return None  # whatever it is, it is no sum


def _all(pool: ThreadPoolExecutor, items: Iterable[T], act: Callable[[T], object]) -> None:
    """Do `act` to all of them. The first failure is raised, and nothing more is begun."""
    futures = [pool.submit(act, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


class _Progress:
    """Tells how far a transfer is, every few seconds; a short one says nothing."""

    def __init__(self, what: str, entries: Sequence[Entry]) -> None:
        self._what, self._files, self._bytes = what, len(entries), sum(entry.size for entry in entries)
        self._files_done = self._bytes_done = 0
        self._told = time.monotonic()
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
        """So many more bytes."""
        with self._lock:
            self._bytes_done += count
            now = time.monotonic()
            if now - self._told < _PROGRESS_SECONDS:
                return
            self._told = now
            done, files_done = self._bytes_done, self._files_done
        share = f"{100 * done / self._bytes:.0f} % of {self._bytes / 1e9:.2f} GB" if self._bytes else ""
        log.info("%s: %s%s", self._what, share, f", {files_done} of {self._files} files" if self._files > 1 else "")

    def finished(self) -> None:
        """One more file."""
        with self._lock:
            self._files_done += 1


class _Watch:
    """What the transfer manager calls back."""

    def __init__(self, progress: _Progress) -> None:
        self._progress, self.count = progress, 0

    def on_progress(self, bytes_transferred: int, **about: Any) -> None:
        """Negative if bytes have to be sent again."""
        self.count += bytes_transferred
        self._progress.add(bytes_transferred)


def _existing(uri: str) -> Path:
    path = local_path(uri)
    if not path.exists():
        raise InputError("uri", uri, "does not exist", "Check the path")
    return path


def _digest(items: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in items:
        digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\n")
    return digest.hexdigest()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(_S3).partition("/")
    if has_credentials(uri):
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
    found = _patiently(uri, lambda: sorted(_entries(client, uri)))
    if not found:
        raise InputError("uri", uri, "holds no objects", "Check the key and its spelling")
    return found


def _inside(into: Path, entry: Entry, uri: str) -> Path:
    name = entry.name.encode(errors="backslashreplace")  # of half a character
    unfit = any(part in (b"", b".", b"..") or len(part) > _LONGEST_NAME for part in name.split(b"/"))
    if unfit or b"\\" in name or b"\0" in name:
        raise InputError("uri", uri, f"has the key {entry.key!r}, which is no safe file name", "Rename or remove that object")
    return into / entry.name


def _first_set(names: Sequence[str]) -> str | None:
    return next((name for name in names if os.environ.get(name)), None)


@cache
def _loader() -> Any:
    """What is known of S3's interface, read once: a client then takes a fifth of the time."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def _client() -> Any:
    import botocore.session
    from botocore.config import Config

    # A session of our own: boto3's default session keeps the credentials of its first use.
    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    options: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 2 * _REQUESTS,
    }
    if variable := _first_set(_STYLES):
        choice(variable, os.environ[variable], ("auto", "path", "virtual"))
        options["s3"] = {"addressing_style": os.environ[variable]}
    endpoint = _first_set(_ENDPOINTS)
    insecure = os.environ.get("MLFLOW_S3_IGNORE_TLS", "").lower() in ("true", "1")

    def make(**more: Any) -> Any:
        try:
            return session.create_client(
                "s3",
                # botocore reads AWS_DEFAULT_REGION only.
                region_name=os.environ.get("AWS_REGION") or None,
                # The endpoint of AWS_ variables and profiles is found by botocore itself.
                endpoint_url=os.environ[endpoint] if endpoint and endpoint.startswith("MLFLOW_") else None,
                verify=False if insecure else None,
                config=Config(**options, **more),
            )
        except ValueError:  # an endpoint that is no address
            shown = "..." if "@" in os.environ.get(endpoint or "", "") else os.environ.get(endpoint or "", "")
            raise InputError(
                endpoint or "endpoint_url", shown, "is not an address", "Write it as http://HOST:PORT or https://HOST"
            ) from None

    client = make()
    if not (urlsplit(client.meta.endpoint_url).hostname or "").endswith(_AWS):
        # By default botocore adds checksums that some stores do not understand.
        profile = session.get_scoped_config()
        silent = [name for name in _CHECKSUMS if name not in profile and f"AWS_{name.upper()}" not in os.environ]
        client = make(**dict.fromkeys(silent, "when_required"))
        # All understand this one. That a body is signed is no substitute: there are stores that do not look at its hash.
        for request in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-call.s3.{request}", _add_md5)
    if owner := os.environ.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER"):
        client.meta.events.register(
            "provide-client-params.s3", lambda params, **about: {**params, "ExpectedBucketOwner": owner}
        )
    return client


def _add_md5(params: dict[str, Any], **about: Any) -> None:
    body, digest = params["body"], hashlib.md5(usedforsecurity=False)
    begin = body.tell()
    while block := body.read(2**20):
        digest.update(block)
    body.seek(begin)
    params["headers"]["Content-MD5"] = base64.b64encode(digest.digest()).decode()


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
            max_concurrency=_REQUESTS,
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            num_download_attempts=3,
            preferred_transfer_client="classic",  # the other one would not use the settings of `client`
        ),
    )


def _patiently(what: str, act: Callable[[], T]) -> T:
    """Do `act`; if it fails in a way that may pass, again, a few times, after waits that grow and are random."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return act()
        except Exception as error:
            if not _may_pass(error):
                raise
            wait = _FIRST_WAIT * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.0)
            log.warning("%s: %s; trying again in %.1f s (%d of %d)", what, _named(error), wait, attempt, _ATTEMPTS - 1)
            time.sleep(wait)
    return act()


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from s3transfer import exceptions as transfer

    if isinstance(error, boto.ClientError):
        code, status = _answer(error)
        return code.startswith(_PASSING) or status in (408, 429) or status >= 500
    return isinstance(
        error,
        _DamagedError
        | boto.ConnectionError
        | boto.HTTPClientError
        | boto.IncompleteReadError
        | boto.ChecksumError
        | ResponseParserError
        | transfer.RetriesExceededError
        | transfer.S3DownloadFailedError  # the object was replaced meanwhile
        | transfer.S3ValidationError,
    ) and not isinstance(error, boto.SSLError)


def _answer(error: Any) -> tuple[str, int]:
    """Code and HTTP status of a ClientError."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _named(error: BaseException) -> str:
    """An error in short, without what it quotes: that may hold secrets."""
    from botocore.exceptions import ClientError
    from s3transfer.exceptions import RetriesExceededError

    if isinstance(error, _DamagedError):
        return str(error)
    if isinstance(error, ClientError):
        return " ".join(str(part) for part in reversed(_answer(error)) if part)
    if isinstance(error, RetriesExceededError):
        return type(error.last_exception).__name__
    return type(error).__name__


@contextmanager
def _store(uri: str) -> Iterator[Any]:
    """A client for the store; what the user can mend becomes InputError, in our own words: the originals may quote secrets,
    hence `from None`."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from s3transfer import exceptions as transfer

    client = None
    try:
        client = _client()
        yield client
    except boto.ClientError as error:
        raise InputError("uri", uri, *_refusal(error)) from None
    except _DamagedError as error:
        raise DamagedError(
            "uri", uri, f"arrives damaged: {error}", "Upload it again; look at what lies between here and the store"
        ) from None
    except boto.SSLError:
        raise InputError(
            "uri",
            uri,
            f"is at {_address(client)}, whose certificate is not trusted here",
            "Name the file of its authority's certificate in AWS_CA_BUNDLE",
        ) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise InputError(
            "uri",
            uri,
            f"cannot be reached at {_address(client)} ({type(error).__name__})",
            f"Check {_ENDPOINTS[0]} and the network",
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
    except boto.ProfileNotFound:
        raise InputError(
            "AWS_PROFILE", os.environ.get("AWS_PROFILE", ""), "is not a profile in ~/.aws", "Check its spelling"
        ) from None
    except (
        boto.IncompleteReadError,
        boto.ChecksumError,
        ResponseParserError,
        transfer.RetriesExceededError,
        transfer.S3DownloadFailedError,
        transfer.S3ValidationError,
    ) as error:
        raise InputError(
            "uri",
            uri,
            f"does not arrive whole from {_address(client)}, in {_ATTEMPTS} attempts ({_named(error)})",
            "Try again; look at what lies between here and the store",
        ) from None
    except boto.BotoCoreError as error:
        raise InputError(
            "uri", uri, f"cannot be used ({type(error).__name__})", "Check the bucket's name and the AWS_ variables"
        ) from None


def _refusal(error: Any) -> tuple[str, str]:
    """What is wrong, and what to do, if the store has answered with an error."""
    code, status = _answer(error)
    if code in ("NoSuchBucket", "InvalidBucketName"):
        return "names a bucket that does not exist", "Check the name, or create it"
    if code in ("NoSuchKey", "404"):
        return "does not exist in the store", "Check the key and its spelling"
    if code in ("ExpiredToken", "ExpiredTokenException"):
        return "is refused by the store: the session's credentials have expired", "Get new ones, and set AWS_SESSION_TOKEN too"
    if code == "RequestTimeTooSkewed":
        return "is refused by the store, whose clock shows another time", "Set this machine's clock"
    if status in (401, 403):
        return (
            f"is refused by the store ({code})",
            "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights to list, read and write there",
        )
    if code in _DAMAGED:
        return f"arrives damaged at the store, in {_ATTEMPTS} attempts", "Look at what lies between here and the store"
    if _may_pass(error):
        return f"is not served by the store ({_named(error)}), in {_ATTEMPTS} attempts", "Try again later"
    return f"is refused by the store ({_named(error)})", "Check the address, the region and the store's log"


def _address(client: Any) -> str:
    """The store's address, without a password in it."""
    url = urlsplit(client.meta.endpoint_url if client is not None else "")
    return f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}"


SKEW_REFUSED = 300.0  # seconds; AWS itself refuses signatures that are 15 minutes off, some stores are stricter


class Probe(NamedTuple):
    """What `probe` found.

    Attributes:
        endpoint: address of the store.
        ahead: seconds by which this machine's clock is ahead of the store's; None if the store does not say its time.
        left: key of what could not be removed; empty: nothing.
        seconds: that it took.
    """

    endpoint: str
    ahead: float | None
    left: str
    seconds: float


def probe(uri: str) -> Probe:
    """List at an S3 address, write a small object below it, read it back, compare it by sha256, and delete it.

    Raises:
        InputError: the store cannot be used, or did not give back what was written.
    """
    bucket, prefix = _split(uri)
    key = f"{prefix.rstrip('/')}/rco-doctor-{secrets.token_hex(8)}".lstrip("/")
    content, left = secrets.token_bytes(1024), ""
    ahead: list[float] = []

    def note_time(http_response: Any, **_: Any) -> None:
        with suppress(KeyError, ValueError):
            ahead.append(time.time() - parsedate_to_datetime(http_response.headers["Date"]).timestamp())

    try:
        with _store(uri) as client:
            client.meta.events.register("after-call.s3", note_time)
            began = time.monotonic()
            client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)  # some stores make a bucket that is written to
            client.put_object(Bucket=bucket, Key=key, Body=content)
            try:
                back = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            finally:
                try:
                    client.delete_object(Bucket=bucket, Key=key)
                except Exception:  # who may write need not have the right to delete
                    left = key
    except InputError as error:
        if ahead and abs(ahead[0]) > SKEW_REFUSED:
            raise InputError(
                "uri",
                uri,
                f"{error.problem}: signatures are dated, and this machine's clock is {said_skew(ahead[0])} the store's",
                "Set the clock (chrony, systemd-timesyncd)",
            ) from None
        raise
    if hashlib.sha256(back).digest() != hashlib.sha256(content).digest():
        raise InputError("uri", uri, "gives back other bytes than were written", "See the log of the store")
    return Probe(_address(client), ahead[0] if ahead else None, left, time.monotonic() - began)


def said_skew(ahead: float) -> str:
    """Words for a clock that differs: "6 minutes ahead of"."""
    size, unit = (abs(ahead) / 60, "minutes") if abs(ahead) >= 90 else (abs(ahead), "seconds")
    return f"{size:.0f} {unit} {'ahead of' if ahead > 0 else 'behind'}"
