"""Requests to a store that are tried again: which failures may pass, and how long to wait."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rco.core.errors import InputError

T = TypeVar("T")

log = logging.getLogger(__name__)

ATTEMPTS = 4  # at a whole file; each of its requests is sent up to three times, a broken stream is read up to three times
_FIRST_WAIT = 1.0  # seconds
# Answers that another attempt may change, beside those of the 5xx kind.
DAMAGED_CODES = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch")
_PASSING_CODES = (*DAMAGED_CODES, "RequestTimeout", "SlowDown", "Throttling", "TooManyRequests")


class DamagedError(InputError):
    """What arrives from an address is not what was sent to it. It is tried again; the last attempt's error is raised."""


def with_retries(what: str, act: Callable[[], T]) -> T:
    """Call `act`. If it fails in a way that may pass, call it again, a few times, after growing and random waits."""
    for attempt in range(1, ATTEMPTS):
        try:
            return act()
        except Exception as error:
            if not may_pass(error):
                raise
            wait = _FIRST_WAIT * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.0)
            log.warning("%s: %s; trying again in %.1f s (%d of %d)", what, brief(error), wait, attempt, ATTEMPTS - 1)
            time.sleep(wait)
    return act()


def may_pass(error: Exception) -> bool:
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from s3transfer import exceptions as transfer

    if isinstance(error, boto.ClientError):
        code, status = code_and_status(error)
        return code.startswith(_PASSING_CODES) or status in (408, 429) or status >= 500
    return isinstance(
        error,
        DamagedError
        | boto.ConnectionError
        | boto.HTTPClientError
        | boto.IncompleteReadError
        | boto.ChecksumError
        | ResponseParserError
        | transfer.RetriesExceededError
        | transfer.S3DownloadFailedError  # the object was replaced meanwhile
        | transfer.S3ValidationError,
    ) and not isinstance(error, boto.SSLError)


def code_and_status(error: Any) -> tuple[str, int]:
    """Code and HTTP status of a ClientError."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def brief(error: BaseException) -> str:
    """An error in short, without what it quotes: that may hold secrets."""
    from botocore.exceptions import ClientError
    from s3transfer.exceptions import RetriesExceededError

    if isinstance(error, DamagedError):
        return error.problem
    if isinstance(error, ClientError):
        return " ".join(str(part) for part in reversed(code_and_status(error)) if part)
    if isinstance(error, RetriesExceededError):
        return type(error.last_exception).__name__
    return type(error).__name__
