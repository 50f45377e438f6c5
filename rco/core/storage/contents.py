"""What lies at an address, local or in a store."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rco.core.errors import InputError
from rco.core.storage.addresses import S3, Entry, bucket_and_key, existing_path, is_remote, local_path
from rco.core.storage.local import content_digest, digest_of, list_files, reads_of
from rco.core.storage.retries import code_and_status, with_retries
from rco.core.storage.s3 import REQUESTS, connection, for_each, iterate_objects, list_objects


def listing(uri: str) -> list[Entry]:
    """What lies at an address, sorted by name; the address of one object or file lists that one.

    Raises:
        InputError: nothing there, or the store cannot be used (bucket, credentials, endpoint).
    """
    if is_remote(uri):
        with connection(uri) as client:
            return list_objects(client, uri)
    path = existing_path(uri)
    found = [path / name for name in list_files(path)] if path.is_dir() else [path]
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
    with connection(uri) as client:
        return with_retries(uri, lambda: next(iterate_objects(client, uri), None)) is not None


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
    bucket, key = bucket_and_key(uri)
    if not key.strip("/"):
        raise InputError("uri", uri, "names a whole bucket, which is not removed", f"Write {S3}BUCKET/KEY")
    with connection(uri) as client:
        keys = with_retries(uri, lambda: [entry.key for entry in iterate_objects(client, uri)])
        with ThreadPoolExecutor(REQUESTS) as pool:
            # One by one: not every store knows how to delete several.
            for_each(pool, keys, lambda key: with_retries(uri, lambda: client.delete_object(Bucket=bucket, Key=key)))


def beginnings(uri: str, names: Sequence[str], length: int) -> list[bytes]:
    """The first `length` bytes of objects in a store; of shorter ones, all.

    Args:
        names: relative to `uri`, which is a folder's.

    Raises:
        InputError: the store cannot be used, or an object is gone.
    """
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""

    def begin(name: str) -> bytes:
        try:
            answer = client.get_object(Bucket=bucket, Key=prefix + name, Range=f"bytes=0-{length - 1}")
        except ClientError as error:
            if code_and_status(error)[1] == 416:  # of an object without a byte
                return b""
            raise
        content: bytes = answer["Body"].read(length)  # some stores answer with all of it
        return content

    with connection(uri) as client, ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(lambda name: with_retries(f"{S3}{bucket}/{prefix}{name}", lambda: begin(name)), names))


def fingerprint(uri: str) -> str:
    """Hex sha256 that changes with what lies at `uri`: any file edited, added, removed or renamed.

    Of an S3 address it is made of names, sizes and ETags, without a download; of a local one, see `content_digest`.

    Raises:
        InputError: as `listing`, or there is nothing at a local address.
    """
    if not is_remote(uri):
        path = existing_path(uri)
        names = list_files(path) if path.is_dir() else [path.name]
        with reads_of(path):
            return content_digest(path if path.is_dir() else path.parent, names)
    return digest_of((entry.name, f"{entry.size} {entry.etag}") for entry in listing(uri))
