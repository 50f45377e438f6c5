"""Whether a store works: one object, written, read back and deleted."""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from rco.core.errors import InputError
from rco.core.storage.addresses import bucket_and_key
from rco.core.storage.s3 import connection, endpoint

SKEW_REFUSED = 300.0  # seconds; AWS itself refuses signatures that are 15 minutes off, some stores are stricter


class StoreProbe(NamedTuple):
    """What `probe_store` found.

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


def probe_store(uri: str) -> StoreProbe:
    """List at an S3 address, write a small object below it, read it back, compare it by sha256, and delete it.

    Raises:
        InputError: the store cannot be used, or did not give back what was written.
    """
    bucket, prefix = bucket_and_key(uri)
    key = f"{prefix.rstrip('/')}/rco-doctor-{secrets.token_hex(8)}".lstrip("/")
    content, left = secrets.token_bytes(1024), ""
    ahead: list[float] = []

    def note_time(http_response: Any, **_: Any) -> None:
        with suppress(KeyError, ValueError):
            ahead.append(time.time() - parsedate_to_datetime(http_response.headers["Date"]).timestamp())

    try:
        with connection(uri) as client:
            client.meta.events.register("after-call.s3", note_time)
            began = time.monotonic()
            client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)  # some stores make a bucket that is written to
            client.put_object(Bucket=bucket, Key=key, Body=content)
            try:
                back = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            finally:
                try:
                    client.delete_object(Bucket=bucket, Key=key)
                except Exception:  # a right to write need not come with one to delete
                    left = key
    except InputError as error:
        if ahead and abs(ahead[0]) > SKEW_REFUSED:
            raise InputError(
                "uri",
                uri,
                f"{error.problem}: signatures are dated, and this machine's clock is {describe_skew(ahead[0])} the store's",
                "Set the clock (chrony, systemd-timesyncd)",
            ) from None
        raise
    if hashlib.sha256(back).digest() != hashlib.sha256(content).digest():
        raise InputError("uri", uri, "gives back other bytes than were written", "See the log of the store")
    return StoreProbe(endpoint(client), ahead[0] if ahead else None, left, time.monotonic() - began)


def describe_skew(ahead: float) -> str:
    """Words for a clock that differs: "6 minutes ahead of"."""
    size, unit = (abs(ahead) / 60, "minutes") if abs(ahead) >= 90 else (abs(ahead), "seconds")
    return f"{size:.0f} {unit} {'ahead of' if ahead > 0 else 'behind'}"
