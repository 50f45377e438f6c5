"""Addresses: a path, `file:///path` or `s3://bucket/key`.

An S3 address names one object if there is one of exactly that key, and otherwise the folder of all objects below `key/`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from rco.core.errors import InputError
from rco.core.settings import has_credentials

S3 = "s3://"


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
    return uri.startswith(S3)


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
    except (OSError, ValueError, RuntimeError) as error:  # no right to read, a circle of links, no such user's home
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError("uri", uri, f"is not a path that can be read ({reason})", "Check path and permissions") from None
    return path


def existing_path(uri: str) -> Path:
    """As `local_path`, and something is there.

    Raises:
        InputError: an address of another kind, or nothing is there.
    """
    path = local_path(uri)
    if not path.exists():
        raise InputError("uri", uri, "does not exist", "Check the path")
    return path


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Bucket and key of an S3 address; the key of a whole bucket is empty.

    Raises:
        InputError: an address of another kind, or with credentials in it.
    """
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if has_credentials(uri):
        raise InputError("uri", f"{S3}...", "holds credentials", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not is_remote(uri) or not bucket:
        raise InputError("uri", uri, "is not an s3:// address", f"Write {S3}BUCKET/KEY")
    return bucket, key
