"""Addresses to files and back, against an S3 store in this process (moto)."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count

from rco.core.errors import InputError
from rco.core.storage import local, retries, transfer
from rco.core.storage.addresses import is_remote
from rco.core.storage.contents import exists, fingerprint, listing, remove
from rco.core.storage.local import list_files
from rco.core.storage.retries import DamagedError, with_retries
from rco.core.storage.s3 import ENDPOINTS, STYLES, make_client
from rco.core.storage.transfer import _recorded_sha256, fetch, upload

ENVIRONMENT = ("AWS_PROFILE", "AWS_REGION", "MLFLOW_S3_IGNORE_TLS", *STYLES, *ENDPOINTS)
SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of nobody, and nothing else that this machine knows about S3."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.01)


@pytest.fixture
def s3() -> Iterator[Any]:
    """An S3 client; the bucket `bucket` exists."""
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


def write(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_comes_back_as_it_went(s3: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "source", one=b"1", deep__er__two=b"22", empty=b"")
    upload(source, "s3://bucket/data")
    assert fetch("s3://bucket/data", tmp_path / "copy") == tmp_path / "copy"
    assert contents(tmp_path / "copy") == contents(source) == {"one": b"1", "deep/er/two": b"22", "empty": b""}


def test_whole_bucket(s3: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "source", one=b"1", deep__two=b"22")
    upload(source, "s3://bucket")
    fetch("s3://bucket", tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(source)


def test_object_is_fetched_under_its_name(s3: Any, tmp_path: Path) -> None:
    upload(write(tmp_path, x=b"x") / "x", "s3://bucket/some/name.tar")
    upload(tmp_path / "x", "s3://bucket/into/")
    assert fetch("s3://bucket/some/name.tar", tmp_path / "copy") == tmp_path / "copy" / "name.tar"
    assert fetch("s3://bucket/into/x", tmp_path / "copy").read_bytes() == b"x"


def test_folder_is_not_a_prefix_of_names(s3: Any, tmp_path: Path) -> None:
    for key in ("data/a", "data2/b", "data.txt", "data/"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"")
    assert [entry.name for entry in listing("s3://bucket/data")] == ["a"]
    assert [entry.name for entry in listing("s3://bucket/data/")] == ["a"]


def test_more_objects_than_a_page_of_the_listing(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    for i in range(5):
        s3.put_object(Bucket="bucket", Key=f"many/{i}", Body=b"")
    assert len(listing("s3://bucket/many")) == 5


def test_large_file_goes_in_parts(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PART_BYTES", 5 * 2**20)  # the least that S3 allows
    content = os.urandom(11 * 2**20)
    upload(write(tmp_path, big=content) / "big", "s3://bucket/big")
    assert listing("s3://bucket/big")[0].etag.strip('"').endswith("-3")
    assert fetch("s3://bucket/big", tmp_path / "copy").read_bytes() == content


def test_fingerprint_follows_content(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="f/one", Body=b"1")
    seen = [fingerprint("s3://bucket/f")]
    for key, body in (("f/two", b"2"), ("f/two", b"3"), ("f/three", b"3")):
        s3.put_object(Bucket="bucket", Key=key, Body=body)
        seen.append(fingerprint("s3://bucket/f"))
    s3.delete_object(Bucket="bucket", Key="f/two")
    seen.append(fingerprint("s3://bucket/f"))
    assert len(set(seen)) == len(seen)
    s3.put_object(Bucket="bucket", Key="g/three", Body=b"3")
    s3.put_object(Bucket="bucket", Key="g/one", Body=b"1")
    assert fingerprint("s3://bucket/g") == seen[-1], "the same content elsewhere"


def test_fingerprint_of_local_files_follows_content(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", one=b"1", sub__two=b"2")
    seen = [fingerprint(str(folder))]
    for name, content in (("sub/two", b"3"), ("sub/three", b"3")):
        (folder / name).write_bytes(content)
        seen.append(fingerprint(str(folder)))
    (folder / "one").unlink()
    seen.append(fingerprint(str(folder)))
    (folder / "sub").rename(folder / "bus")
    seen.append(fingerprint(str(folder)))
    assert len(set(seen)) == len(seen)
    same = write(tmp_path / "g", bus__three=b"3", bus__two=b"3")
    assert fingerprint(same.as_uri()) == seen[-1]
    assert fingerprint(str(folder / "bus" / "two")) != seen[-1]


def test_fingerprint_of_very_much_looks_at_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "f", one=b"1")
    by_content = fingerprint(str(folder))
    os.utime(folder / "one", ns=(1, 1))
    assert fingerprint(str(folder)) == by_content
    monkeypatch.setattr(local, "_HASHED_BYTES", 0)
    by_time = fingerprint(str(folder))
    os.utime(folder / "one", ns=(2, 2))
    assert fingerprint(str(folder)) != by_time


def test_files_follow_links_but_not_in_circles(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", a__one=b"1")
    elsewhere = write(tmp_path / "elsewhere", two=b"2")
    (folder / "b").symlink_to(elsewhere)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    assert list_files(folder) == ["a/one", "b/two"]


@pytest.mark.parametrize("key", ["f/../evil", "f/a/../../../evil", "f//evil", "f/./evil", "f/..", "f/a\\..\\evil"])
def test_hostile_key_is_refused_before_anything_is_written(s3: Any, tmp_path: Path, key: str) -> None:
    s3.put_object(Bucket="bucket", Key="f/a-good-one", Body=b"good")
    s3.put_object(Bucket="bucket", Key=key, Body=b"evil")
    with pytest.raises(InputError, match="not a safe file name"):
        fetch("s3://bucket/f", tmp_path / "in" / "to")
    assert contents(tmp_path) == {}


def test_failed_download_leaves_no_files(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="bucket", Key="f/gone", Body=b"x" * 100)
    listed = listing("s3://bucket/f")
    s3.delete_object(Bucket="bucket", Key="f/gone")
    monkeypatch.setattr(transfer, "list_objects", lambda client, uri: listed)
    with pytest.raises(InputError, match="does not exist"):
        fetch("s3://bucket/f", tmp_path / "copy")
    assert contents(tmp_path) == {}


def test_exists(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="f/one", Body=b"1")
    assert [exists(f"s3://bucket/{key}") for key in ("f", "f/", "f/one", "f/on", "g")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert exists(str(tmp_path))
    assert not exists(str(tmp_path / "no"))


def test_nothing_there(s3: Any, tmp_path: Path) -> None:
    for act in (fingerprint, listing, lambda uri: fetch(uri, tmp_path)):
        with pytest.raises(InputError, match=r"s3://bucket/nothing.*holds no objects"):
            act("s3://bucket/nothing")
    with pytest.raises(InputError, match="does not exist"):
        fetch(str(tmp_path / "nothing"), tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        upload(tmp_path / "nothing", "s3://bucket/x")


def test_no_such_bucket(s3: Any, tmp_path: Path) -> None:
    for act in (fingerprint, exists, lambda uri: upload(write(tmp_path, x=b"") / "x", uri)):
        with pytest.raises(InputError, match=r"s3://nowhere/x.*bucket that does not exist"):
            act("s3://nowhere/x")


@set_initial_no_auth_action_count(1)  # the fixture's; from there on moto looks at keys
def test_refused_credentials(s3: Any) -> None:
    with pytest.raises(InputError, match=r"refused.*AWS_ACCESS_KEY_ID") as caught:
        listing("s3://bucket/f")
    assert SECRET not in str(caught.value)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="needs credentials"):
        listing("s3://bucket/f")


def test_unreachable_endpoint_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:{SECRET}@127.0.0.1:9/")
    with pytest.raises(InputError, match=r"cannot be reached at http://127.0.0.1:9 .*AWS_ENDPOINT_URL_S3") as caught:
        listing("s3://bucket/f")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="holds credentials") as caught:
        listing(f"s3://user:{SECRET}@bucket/f")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("uri", ["gs://b/f", "https://host/f", "s3:///f"])
def test_other_addresses_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="s3://"):
        fetch(uri, tmp_path)


def test_local_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write(tmp_path / "a folder", one=b"1")
    assert fetch(folder.as_uri(), tmp_path) == fetch("~/a folder", tmp_path) == folder
    assert not is_remote(folder.as_uri())
    assert is_remote("s3://bucket")
    upload(folder, str(tmp_path / "copy"))
    upload(folder / "one", f"{tmp_path}/copy/sub/")
    assert contents(tmp_path / "copy") == {"one": b"1", "sub/one": b"1"}


def test_sha256_goes_with_the_object(s3: Any, tmp_path: Path) -> None:
    upload(write(tmp_path, one=b"content") / "one", "s3://bucket/one")
    recorded = s3.head_object(Bucket="bucket", Key="one")["Metadata"]
    assert recorded == {"sha256": hashlib.sha256(b"content").hexdigest()}


def test_other_content_than_was_recorded(s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    right = hashlib.sha256(b"right").hexdigest()
    s3.put_object(Bucket="bucket", Key="f/one", Body=b"wrong", Metadata={"SHA256": right})
    with pytest.raises(InputError, match=r"s3://bucket/f.*arrives damaged: its sha256 is .*, recorded was"):
        fetch("s3://bucket/f", tmp_path / "copy")
    assert contents(tmp_path / "copy") == {}
    retries = [message for message in caplog.messages if "trying again" in message]
    assert [message.rpartition("(")[2] for message in retries] == ["1 of 3)", "2 of 3)", "3 of 3)"]


def test_sha256_that_the_store_has_recorded() -> None:
    digest = hashlib.sha256(b"content")
    whole = base64.b64encode(digest.digest()).decode()
    assert _recorded_sha256({"ChecksumSHA256": whole}) == digest.hexdigest()
    assert _recorded_sha256({"ChecksumSHA256": f"{whole}-2", "Metadata": {}}) is None
    assert _recorded_sha256({"ChecksumSHA256": whole, "Metadata": {"sha256": "AB" * 32}}) == "ab" * 32
    assert _recorded_sha256({"Metadata": {"sha256": whole}}) is None, "another tool's way to write it"


def test_objects_of_others_have_no_sha256(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="f/one", Body=b"1")
    assert contents(fetch("s3://bucket/f", tmp_path)) == {"one": b"1"}


def test_listing_of_local_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", b=b"22", a__one=b"1")
    assert [(entry.name, entry.size, entry.key) for entry in listing(str(folder))] == [
        ("a/one", 1, str(folder / "a" / "one")),
        ("b", 2, str(folder / "b")),
    ]
    assert [entry.name for entry in listing((folder / "b").as_uri())] == ["b"]
    with pytest.raises(InputError, match="does not exist"):
        listing(str(tmp_path / "no"))


def test_remove(s3: Any, tmp_path: Path) -> None:
    for key in ("f/one", "f/two", "f2", "g"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"")
    for uri in ("s3://bucket/f", "s3://bucket/g", "s3://bucket/nothing"):
        remove(uri)
    assert [entry.name for entry in listing("s3://bucket")] == ["f2"]
    for uri in ("s3://bucket", "s3://bucket/"):
        with pytest.raises(InputError, match="whole bucket"):
            remove(uri)
    folder = write(tmp_path / "f", one=b"1", sub__two=b"2")
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", folder / "one", tmp_path / "nothing"):
        remove(str(path))
    assert contents(tmp_path) == {"f/sub/two": b"2"}
    remove(folder.as_uri())
    assert not folder.exists()


def test_long_transfers_tell_how_far_they_are(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="rco")
    source = write(tmp_path / "source", one=b"1" * 10**6, two=b"2" * 10**6)
    upload(source, "s3://bucket/f")
    assert not caplog.messages, "a short one says nothing"
    monkeypatch.setattr(transfer, "_PROGRESS_SECONDS", 0.0)
    upload(source, "s3://bucket/f")
    fetch("s3://bucket/f", tmp_path / "copy")
    assert "uploading to s3://bucket/f: 100 % of 0.00 GB" in caplog.text
    assert "fetching s3://bucket/f: 100 % of 0.00 GB" in caplog.text
    assert {record.name for record in caplog.records} == {"rco.core.storage.transfer"}


def test_waits_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries, "_FIRST_WAIT", 1.0)
    monkeypatch.setattr(retries.time, "sleep", waits.append)

    def damaged() -> None:
        raise DamagedError("uri", "s3://bucket/it", "arrives damaged", "Upload it again")

    with pytest.raises(DamagedError):
        with_retries("it", damaged)
    assert len(waits) == 3
    assert all(wait / most <= 1 and wait / most >= 0.5 for wait, most in zip(waits, (1, 2, 4), strict=True))


def test_arguments_of_uploads_are_those_of_mlflow(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, one=b"1") / "one"
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", '{"ServerSideEncryption": "AES256", "Metadata": {"team": "vision"}}')
    upload(path, "s3://bucket/one")
    about = s3.head_object(Bucket="bucket", Key="one")
    assert about["ServerSideEncryption"] == "AES256"
    assert set(about["Metadata"]) == {"team", "sha256"}
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", "AES256")
    with pytest.raises(InputError, match=r"MLFLOW_S3_UPLOAD_EXTRA_ARGS = .{5}: is not a JSON object"):
        upload(path, "s3://bucket/one")


def test_owner_of_the_bucket_is_named_in_every_request(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_S3_EXPECTED_BUCKET_OWNER", "111122223333")
    seen: list[dict[str, Any]] = []
    client = make_client()
    client.meta.events.register("before-call.s3", lambda params, **about: seen.append(params["headers"]))
    client.list_objects_v2(Bucket="bucket")
    assert seen[0]["x-amz-expected-bucket-owner"] == "111122223333"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"])
def test_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "minio:9000")
    with pytest.raises(InputError, match=f"{name} = 'minio:9000': is not an address.*http://HOST:PORT"):
        exists("s3://bucket/f")


def test_profiles_and_the_wishes_in_them_are_heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[default]\nendpoint_url = http://any.example\nregion = eu-west-1\nrequest_checksum_calculation = when_supported\n"
        "[profile plain]\nregion = eu-west-2\ns3 =\n  addressing_style = virtual\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    meta = make_client().meta
    assert (meta.endpoint_url, meta.region_name) == ("http://any.example", "eu-west-1")
    assert meta.config.request_checksum_calculation == "when_supported"
    assert meta.config.response_checksum_validation == "when_required"
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://mlflow.example")
    assert make_client().meta.endpoint_url == "http://mlflow.example", "the environment wins over files"
    monkeypatch.setenv("AWS_PROFILE", "plain")
    assert make_client().meta.config.s3 == {"addressing_style": "virtual"}
    monkeypatch.setenv("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "path")
    assert make_client().meta.config.s3 == {"addressing_style": "path"}


def test_store_is_described_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def config() -> tuple[str, str, str]:
        client = make_client()
        return client.meta.endpoint_url, client.meta.region_name, client.meta.config.request_checksum_calculation

    assert config() == ("https://s3.amazonaws.com", "us-east-1", "when_supported")
    for name, host in zip(reversed(ENDPOINTS), ("http://mlflow", "http://any", "http://s3"), strict=True):
        monkeypatch.setenv(name, host)
        assert config() == (host, "us-east-1", "when_required")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert config()[1] == "eu-central-1"
    monkeypatch.setenv("RCO_S3_ADDRESSING_STYLE", "virtual")
    assert make_client().meta.config.s3 == {"addressing_style": "virtual"}
    monkeypatch.setenv("RCO_S3_ADDRESSING_STYLE", "vrtual")
    with pytest.raises(InputError, match="Did you mean 'virtual'"):
        make_client()
