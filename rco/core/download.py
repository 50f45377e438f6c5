"""Files from the web: whole, as their hash says, or not there. An interrupted download goes on where it stopped."""

from __future__ import annotations

import errno
import logging
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock

from rco.core.errors import InputError, why_unreachable
from rco.core.files import settle, sha256_of

log = logging.getLogger("rco")

_TRIES, _PAUSE, _TIMEOUT = 3, 1.0, 30.0  # seconds
_BLOCK = 2**20
_SOME = "rco"  # some servers refuse urllib's own name


def download(url: str, path: Path, sha256: str) -> Path:
    """Bring a file to `path`, unless it is there. Of several processes one downloads it, and the others wait.

    Args:
        url: http:// or https://. Proxies are those of the environment.
        sha256: hex digits with which the file's sha256 begins.

    Raises:
        InputError: it cannot be had, or what arrives is something else; the remedy says where to put the file by hand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            if sha256_of(path).startswith(sha256):
                return path
            problem = f"is not the file that was published: its sha256 does not begin with {sha256[:12]}"
            raise InputError("file", str(path), problem, "Remove it, and it is downloaded again")
        part = path.with_name(f".{path.name}.part")
        for attempt in range(_TRIES):
            resumed = part.is_file() and part.stat().st_size > 0
            try:
                _receive(url, part)
            except (OSError, HTTPException, ValueError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise  # whoever runs the task says it
                if attempt + 1 < _TRIES and not _final(error):
                    time.sleep(_PAUSE * 2**attempt)
                    continue
                raise _refusal(url, path, f"cannot be downloaded: {_why(error)}") from None
            if sha256_of(part).startswith(sha256):
                settle(part, path)
                log.info("downloaded %s: %.1f MB", path.name, path.stat().st_size / 1e6)
                return path
            part.unlink()
            if not resumed:  # else the part that was there may have been of another file
                break
    raise _refusal(url, path, f"is not what was published: its sha256 does not begin with {sha256[:12]}")


def headers(url: str) -> dict[str, str]:
    """What a server says of a file, by names in small letters; a redirection is not followed.

    Raises:
        OSError: it cannot be asked.
    """
    opener = urllib.request.build_opener(_NoRedirection())
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": _SOME})
    try:
        with opener.open(request, timeout=_TIMEOUT) as answer:
            found = answer.headers
    except urllib.error.HTTPError as error:
        if not 300 <= error.code < 400:
            raise
        found = error.headers
    return {name.lower(): value for name, value in found.items()}


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _receive(url: str, part: Path) -> None:
    """Write the file to `part`, after what is there already."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("it is no http:// or https:// address")
    have = part.stat().st_size if part.is_file() else 0
    wanted = {"User-Agent": _SOME, **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=wanted), timeout=_TIMEOUT) as answer:
            goes_on = have and answer.status == 206 and str(answer.headers["Content-Range"]).startswith(f"bytes {have}-")
            length, received = answer.headers["Content-Length"], 0
            with open(part, "ab" if goes_on else "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    received += len(block)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # there is nothing after what we have: it is whole, or of another file
            raise
        return
    if length is not None and received < int(length):
        raise ConnectionResetError("it broke off")


def _final(error: BaseException) -> bool:
    """Whether another try would end alike."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 425, 429)
    return isinstance(error, ValueError) or getattr(error, "filename", None) is not None


def _why(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code}"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.path.basename(str(error.filename))}: {error.strerror}"
    return "it broke off" if isinstance(error, (ConnectionResetError, HTTPException)) else why_unreachable(error)


def _refusal(url: str, path: Path, problem: str) -> InputError:
    return InputError("url", url, problem, f"Put the file there yourself, as {path}, or name a file that you have")
