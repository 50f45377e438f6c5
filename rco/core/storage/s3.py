"""An S3 store: a client for it, its listing, and its refusals in words.

Any S3-compatible store will do; it is described as to the AWS
tools, by the environment or by the profile in ~/.aws/config:

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL   the store, if it is not AWS itself
    AWS_REGION, AWS_DEFAULT_REGION          its region
    AWS_ACCESS_KEY_ID and the like          credentials: boto3's whole chain (profiles, web identity, instance roles)
    AWS_CA_BUNDLE                           certificates to trust, in place of those that come with botocore
    RCO_S3_ADDRESSING_STYLE                 ours: path | virtual | auto (the default: path wherever an endpoint is set)

MLflow's variables are understood; where both are set, the ones above win over MLFLOW_S3_ENDPOINT_URL and
MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE. MLFLOW_S3_IGNORE_TLS, MLFLOW_S3_UPLOAD_EXTRA_ARGS and MLFLOW_S3_EXPECTED_BUCKET_OWNER mean
what they mean to MLflow.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rco.core.errors import InputError, choice
from rco.core.storage.addresses import Entry, bucket_and_key
from rco.core.storage.retries import ATTEMPTS, DAMAGED_CODES, brief, code_and_status, may_pass, with_retries

T = TypeVar("T")

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
STYLES = ("RCO_S3_ADDRESSING_STYLE", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE")
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
REQUESTS = 16  # in flight, over all files together
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


@contextmanager
def connection(uri: str) -> Iterator[Any]:
    """A client for the store; what the user can mend becomes InputError, in our own words: the originals may quote secrets,
    hence `from None`."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from s3transfer import exceptions as transfer

    client = None
    try:
        client = make_client()
        yield client
    except boto.ClientError as error:
        raise InputError("uri", uri, *_refusal(error)) from None
    except boto.SSLError:
        raise InputError(
            "uri",
            uri,
            f"is at {endpoint(client)}, whose certificate is not trusted here",
            "Name the file of its authority's certificate in AWS_CA_BUNDLE",
        ) from None
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise InputError(
            "uri",
            uri,
            f"cannot be reached at {endpoint(client)} ({type(error).__name__})",
            f"Check {ENDPOINTS[0]} and the network",
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
            f"does not arrive whole from {endpoint(client)}, in {ATTEMPTS} attempts ({brief(error)})",
            "Try again; look at what lies between here and the store",
        ) from None
    except boto.BotoCoreError as error:
        raise InputError(
            "uri", uri, f"cannot be used ({type(error).__name__})", "Check the bucket's name and the AWS_ variables"
        ) from None


def _refusal(error: Any) -> tuple[str, str]:
    """What is wrong, and what to do, if the store has answered with an error."""
    code, status = code_and_status(error)
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
    if code in DAMAGED_CODES:
        return f"arrives damaged at the store, in {ATTEMPTS} attempts", "Look at what lies between here and the store"
    if may_pass(error):
        return f"is not served by the store ({brief(error)}), in {ATTEMPTS} attempts", "Try again later"
    return f"is refused by the store ({brief(error)})", "Check the address, the region and the store's log"


def endpoint(client: Any) -> str:
    """The store's address, without a password in it."""
    url = urlsplit(client.meta.endpoint_url if client is not None else "")
    return f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}"


def iterate_objects(client: Any, uri: str) -> Iterator[Entry]:
    bucket, key = bucket_and_key(uri)
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


def list_objects(client: Any, uri: str) -> list[Entry]:
    found = with_retries(uri, lambda: sorted(iterate_objects(client, uri)))
    if not found:
        raise InputError("uri", uri, "holds no objects", "Check the key and its spelling")
    return found


def for_each(pool: ThreadPoolExecutor, items: Iterable[T], act: Callable[[T], object]) -> None:
    """Do `act` to all of them. The first failure is raised, and nothing more is begun."""
    futures = [pool.submit(act, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _first_set(names: Sequence[str]) -> str | None:
    return next((name for name in names if os.environ.get(name)), None)


@cache
def _loader() -> Any:
    """What is known of S3's interface, read once: a client then takes a fifth of the time."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def make_client() -> Any:
    import botocore.session
    from botocore.config import Config

    # A session of our own: boto3's default session keeps the credentials of its first use.
    session = botocore.session.get_session()
    session.register_component("data_loader", _loader())
    options: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 2 * REQUESTS,
    }
    if variable := _first_set(STYLES):
        choice(variable, os.environ[variable], ("auto", "path", "virtual"))
        options["s3"] = {"addressing_style": os.environ[variable]}
    endpoint = _first_set(ENDPOINTS)
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
