"""Files to a real S3-compatible store and back, also when things between here and there go wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rco.core.errors import InputError
from rco.core.storage import retries
from rco.core.storage.contents import exists, listing, remove
from rco.core.storage.local import list_files
from rco.core.storage.transfer import fetch, upload
from tests import faults, servers
from tests.faults import SLOW_DOWN, Fault

BUCKET = "store"
MIB = 2**20


@pytest.fixture(scope="module")
def bucket(seaweed: servers.Seaweed) -> str:
    """Address of a bucket of this module's own."""
    return seaweed.make_bucket(BUCKET)


@pytest.fixture(scope="module")
def through(seaweed: servers.Seaweed) -> Iterator[faults.Proxy]:
    """What lies between us and the store."""
    with faults.Proxy(seaweed.endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxy(
    seaweed: servers.Seaweed, through: faults.Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[faults.Proxy]:
    """The proxy without faults, and an environment that leads through it."""
    for name, value in seaweed.environment(through.address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.05)
    through.clear()
    yield through
    through.up()
    through.clear()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three parts."""
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(os.urandom(33 * MIB))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stored(seaweed: servers.Seaweed, key: str) -> bytes:
    """What the store holds, by a client of its own."""
    content: bytes = seaweed.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content


def unfinished(seaweed: servers.Seaweed) -> list[Any]:
    """Uploads in parts that were neither completed nor aborted."""
    found: list[Any] = seaweed.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


def test_large_file_goes_and_comes_in_parts_at_the_same_time(
    seaweed: servers.Seaweed, proxy: faults.Proxy, bucket: str, large: Path, tmp_path: Path
) -> None:
    proxy.inject(Fault(delay=0.5), method="PUT", times=None)
    upload(large, f"{bucket}/parts")
    assert sum("partNumber=" in path for _, path in proxy.requests) == 3
    assert proxy.at_once == 3
    about = seaweed.client().head_object(Bucket=BUCKET, Key="parts")
    assert about["Metadata"] == {"sha256": sha256(large)}
    proxy.clear()
    proxy.inject(Fault(delay=0.5), method="GET", path="/parts", times=None)
    assert sha256(fetch(f"{bucket}/parts", tmp_path)) == sha256(large)
    assert proxy.at_once >= 2  # the first part alone tells that there are more


FAULTS = {
    "damaged on the way there": (Fault(damage_request=True), "PUT", 2),
    "damaged on the way back": (Fault(damage=True), "GET", 2),
    "cut on the way there": (Fault(cut_request_at=100_000), "PUT", 4),
    "cut on the way back": (Fault(cut_at=100_000), "GET", 5),
    "slow down": (SLOW_DOWN, "", 5),
    "answers of a broken gateway": (Fault(answer=(502, b"<html>bad gateway</html>")), "", 4),
    "connections dropped": (Fault(drop=True), "", 4),
    "answers lost": (Fault(lose_answer=True), "PUT", 3),
}


@pytest.mark.parametrize("size", [1 * MIB, 33 * MIB], ids=["one part", "three parts"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass_are_survived(
    seaweed: servers.Seaweed, proxy: faults.Proxy, bucket: str, tmp_path: Path, large: Path, name: str, size: int
) -> None:
    path = tmp_path / "content"
    path.write_bytes(large.read_bytes()[-size:])
    fault, method, times = FAULTS[name]
    proxy.inject(fault, method=method, path="/passing", times=times)
    upload(path, f"{bucket}/passing")
    assert stored(seaweed, "passing") == path.read_bytes()
    assert sha256(fetch(f"{bucket}/passing", tmp_path / "back")) == sha256(path)
    assert proxy.injected == times
    assert os.listdir(tmp_path / "back") == ["passing"]
    assert unfinished(seaweed) == []


def test_sha256_that_the_store_has_recorded_counts_as_well(
    seaweed: servers.Seaweed, proxy: faults.Proxy, bucket: str, tmp_path: Path
) -> None:
    seaweed.client().put_object(Bucket=BUCKET, Key="by-others", Body=b"x" * 1000, ChecksumAlgorithm="SHA256")
    proxy.inject(Fault(damage=True), method="GET", path="/by-others")
    assert fetch(f"{bucket}/by-others", tmp_path).read_bytes() == b"x" * 1000
    assert proxy.injected == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(damage=True), "arrives damaged: its sha256 is"),
        (Fault(cut_at=100_000), "does not arrive whole from http://127"),
        (SLOW_DOWN, r"is not served by the store \(503 SlowDown\), in 4 attempts"),
        (Fault(drop=True), "cannot be reached at http://127"),
    ],
)
def test_download_that_stays_impossible_leaves_nothing(
    proxy: faults.Proxy, bucket: str, tmp_path: Path, large: Path, fault: Fault, words: str
) -> None:
    upload(large, f"{bucket}/impossible/one")
    proxy.inject(fault, method="GET", path="/impossible/", times=None)
    with pytest.raises(InputError, match=words):
        fetch(f"{bucket}/impossible", tmp_path / "back")
    assert os.listdir(tmp_path / "back") == []
    # Four attempts at a file of three parts; each part's stream is read three times, each request sent three times.
    assert proxy.injected <= 4 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(damage_request=True), "arrives damaged at the store, in 4 attempts"),
        (Fault(cut_request_at=100_000), "cannot be reached at http://127"),
        (SLOW_DOWN, "is not served by the store"),
    ],
)
def test_upload_that_stays_impossible_leaves_nothing(
    seaweed: servers.Seaweed, proxy: faults.Proxy, bucket: str, large: Path, fault: Fault, words: str
) -> None:
    proxy.inject(fault, method="PUT", path="partNumber=2", times=None)
    with pytest.raises(InputError, match=words):
        upload(large, f"{bucket}/no-upload")
    assert not exists(f"{bucket}/no-upload")
    assert unfinished(seaweed) == []
    assert proxy.injected <= 4 * 3


def test_store_that_is_away_for_a_moment(
    proxy: faults.Proxy, bucket: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FIRST_WAIT", 1.0)
    proxy.down()
    with pytest.raises(InputError, match=r"cannot be reached at http://127.*Check AWS_ENDPOINT_URL_S3 and the network"):
        listing(bucket)
    threading.Timer(1.0, proxy.up).start()
    upload(large, f"{bucket}/patience")
    assert listing(f"{bucket}/patience")[0].size == 33 * MIB


def test_one_bad_file_ends_all(proxy: faults.Proxy, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(60):
        (source / f"{number:02}").write_bytes(bytes([number]))
    upload(source, f"{bucket}/many")
    proxy.clear()
    proxy.inject(Fault(answer=(403, b"<Error><Code>AccessDenied</Code></Error>")), method="GET", path="/many/00$", times=None)
    proxy.inject(Fault(delay=0.3), method="HEAD", path="/many/", times=None)
    with pytest.raises(InputError, match="AccessDenied"):
        fetch(f"{bucket}/many", tmp_path / "back")
    assert sum(method == "HEAD" for method, _ in proxy.requests) < 60
    assert not [name for name in os.listdir(tmp_path / "back") if name.startswith(".")]


def test_writers_and_readers_of_one_key(proxy: faults.Proxy, bucket: str, tmp_path: Path) -> None:
    contents = {}
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(20 * MIB))
        contents[sha256(tmp_path / name)] = name
    upload(tmp_path / "a", f"{bucket}/shared")
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for _ in range(3):
                upload(tmp_path / name, f"{bucket}/shared")
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    for number in range(4):
        assert sha256(fetch(f"{bucket}/shared", tmp_path / str(number))) in contents
    for writer in writers:
        writer.join()
    assert not failures
    assert sha256(fetch(f"{bucket}/shared", tmp_path / "end")) in contents


MEASURE = """
import pathlib, sys
from rco.core.storage.contents import exists
from rco.core.storage.transfer import fetch, upload
def peak():  # in KiB; what getrusage says is never less than it was in the process that started this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
exists(sys.argv[2])
before = peak()
if sys.argv[1] == "upload":
    upload(pathlib.Path(sys.argv[3]), sys.argv[2])
else:
    fetch(sys.argv[2], pathlib.Path(sys.argv[3]))
print(before, peak())
"""


def test_nothing_is_whole_in_memory(seaweed: servers.Seaweed, bucket: str, tmp_path: Path) -> None:
    size = 200 * MIB
    path, block = tmp_path / "huge", os.urandom(10 * MIB)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    environment = {**os.environ, **seaweed.environment()}
    for act, place in (("upload", path), ("fetch", tmp_path / "back")):
        command = [sys.executable, "-c", MEASURE, act, f"{bucket}/huge", str(place)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        before, after = map(int, done.stdout.split())
        print(f"{act} of {size >> 20} MiB: peak memory {before >> 10} MiB before, {after >> 10} MiB after")
        assert (after - before) * 1024 < size / 2
    assert sha256(tmp_path / "back" / "huge") == sha256(path)
    seaweed.client().delete_object(Bucket=BUCKET, Key="huge")


def test_odd_names_come_back(proxy: faults.Proxy, bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    names = ["a b+c", "d%20e", "Ünïcode/文件.png", "q?x=1&y#z", "~tilde'(quote)"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    upload(source, f"{bucket}/odd names")
    assert [entry.name for entry in listing(f"{bucket}/odd names")] == sorted(names)
    back = fetch(f"{bucket}/odd names", tmp_path / "back")
    assert {name: (back / name).read_text() for name in list_files(back)} == {name: name for name in names}
    remove(f"{bucket}/odd names")
    assert not exists(f"{bucket}/odd names")
    remove(f"{bucket}/odd names")


def test_wrong_key_is_refused_and_not_repeated(proxy: faults.Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(InputError, match=r"is refused by the store \(SignatureDoesNotMatch\).*AWS_SECRET_ACCESS_KEY") as caught:
        listing(f"{bucket}/x")
    assert "not-the-secret" not in str(caught.value)
    assert len(proxy.requests) == 1, "a refusal does not pass"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(InputError, match=r"is refused by the store \(InvalidAccessKeyId\)"):
        exists(f"{bucket}/x")


def test_profile_describes_the_store(
    seaweed: servers.Seaweed, proxy: faults.Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in seaweed.environment():
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"""
[profile lab]
region = eu-central-1
services = lab
s3 =
    addressing_style = path
[services lab]
s3 =
    endpoint_url = {proxy.address}
""")
    keys = f"aws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[lab]\n{keys}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    (tmp_path / "file").write_text("by profile")
    upload(tmp_path / "file", f"{bucket}/profile")
    assert stored(seaweed, "profile") == b"by profile"
    assert ("PUT", f"/{BUCKET}/profile") in proxy.requests
    monkeypatch.setenv("AWS_PROFILE", "lba")
    with pytest.raises(InputError, match="AWS_PROFILE = 'lba': is not a profile"):
        exists(f"{bucket}/profile")


def test_certificate_authority_is_that_of_the_environment(
    seaweed: servers.Seaweed, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = faults.make_certificate(tmp_path / "ca.pem")
    with faults.Proxy(seaweed.endpoint, certificate=certificate) as secure:
        for name, value in seaweed.environment(secure.address).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=r"certificate is not trusted.*AWS_CA_BUNDLE"):
            exists(bucket)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        (tmp_path / "file").write_bytes(os.urandom(20 * MIB))
        upload(tmp_path / "file", f"{bucket}/secure")
        assert sha256(fetch(f"{bucket}/secure", tmp_path / "back")) == sha256(tmp_path / "file")
        monkeypatch.delenv("AWS_CA_BUNDLE")
        monkeypatch.setenv("MLFLOW_S3_IGNORE_TLS", "true")
        assert exists(f"{bucket}/secure")
