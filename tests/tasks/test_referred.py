"""Large sets whose images stay where they are: in a store (moto, in this process) or in an archive."""

from __future__ import annotations

import logging
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.response import StreamingBody
from PIL import Image

from rco.core.errors import InputError
from rco.core.storage import retries, transfer
from rco.core.storage.s3 import ENDPOINTS, make_client
from rco.core.tensors import load_arrays, save_arrays
from rco.data import referred
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.manifest import Manifest, Origin, digests_file
from rco.data.prepare import prepare
from rco.data.referred import open_dataset
from rco.data.sources.kinds import source_digest
from rco.tasks.data import prepare_data

COUNT = 6  # images of each of two classes
LINES = ["path,label", *(f"{name}/{i:02}.png,{name}" for name in ("kite", "wren") for i in range(COUNT))]


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A folder of images of two classes, and a list of them."""
    rng = np.random.default_rng(0)
    root = tmp_path / "birds"
    for name in ("kite", "wren"):
        (root / name).mkdir(parents=True)
        for i in range(COUNT):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name / f"{i:02}.png")
    (root / "list.csv").write_text("\n".join(LINES))
    return root


@pytest.fixture
def store(birds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a store that holds the folder, and archives of it."""
    from moto import mock_aws

    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "_FIRST_WAIT", 0.01)
    with mock_aws():
        client = make_client()
        client.create_bucket(Bucket="bucket")
        for path in birds.rglob("*.*"):
            client.put_object(Bucket="bucket", Key=f"birds/{path.relative_to(birds)}", Body=path.read_bytes())
        yield client


def archives(root: Path, into: Path) -> dict[str, Path]:
    """The folder as a tar and as a ZIP file."""
    into.mkdir(exist_ok=True)
    shutil.make_archive(str(into / "birds"), "zip", root)
    with tarfile.open(into / "birds.tar", "w") as archive:
        archive.add(root, "around")
    return {"zip": into / "birds.zip", "tar": into / "birds.tar"}


def of(dataset: object, **options: Any) -> DataConfig:
    """Settings under which nothing is held in memory."""
    return DataConfig.of(dataset=str(dataset), in_memory_gib=0, **options)


def refer(config: DataConfig, out: Path) -> Manifest:
    return prepare(config, out, source_digest(config), refer=True)


def pixels(data: Dataset, part: str = "train") -> np.ndarray[Any, Any]:
    return np.concatenate([x.numpy() for x, _ in data.split(part).batches(64, workers=0)])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the objects that have been asked for."""
    keys: list[str] = []
    original = transfer._receive

    def noted(client: Any, bucket: str, key: str, *rest: Any) -> None:
        keys.append(key)
        original(client, bucket, key, *rest)

    monkeypatch.setattr(transfer, "_receive", noted)
    return keys


@pytest.mark.parametrize("name", ["birds", "birds/list.csv", "birds.zip", "birds.tar"])
def test_what_is_in_a_store_is_not_copied_and_reads_the_same(store: Any, tmp_path: Path, name: str) -> None:
    if name in ("birds.zip", "birds.tar"):
        transfer.upload(archives(tmp_path / "birds", tmp_path)[name[-3:]], "s3://bucket/")
    config = of(f"s3://bucket/{name}")
    copied = prepare(config, tmp_path / "copied", source_digest(config))
    manifest = refer(config, tmp_path / "out")
    assert (copied.root, copied.origin) == ("images", Origin())
    assert (manifest.root, manifest.origin.archive) == ("", name.startswith("birds."))
    assert manifest.origin.address == f"s3://bucket/{name.removesuffix('/list.csv')}"
    assert manifest.digest == copied.digest, "what is in the set does not depend on where it lies"
    parts = {f"{part}.json" for part in manifest.sizes}
    digests = set() if manifest.origin.archive else {f"{part}.digests.safetensors" for part in manifest.sizes}
    assert files(tmp_path / "out") == {"manifest.json", *parts, *digests}
    for part in manifest.sizes:
        there, here = open_dataset(tmp_path / "out"), Dataset.open(tmp_path / "copied")
        assert np.array_equal(pixels(there, part), pixels(here, part))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_local_archive_is_unpacked_by_those_that_read_it(birds: Path, tmp_path: Path, kind: str) -> None:
    archive = archives(birds, tmp_path / "packed")[kind]
    manifest = refer(of(archive), tmp_path / "out")
    assert (manifest.origin.address, manifest.origin.archive) == (str(archive), True)
    assert not list((tmp_path / "out").rglob("*.png"))
    assert len(pixels(open_dataset(tmp_path / "out"))) == manifest.sizes["train"]
    archive.unlink()  # it is unpacked
    assert len(pixels(open_dataset(tmp_path / "out"), "test")) == manifest.sizes["test"]
    shutil.rmtree(tmp_path / "out" / "images")
    with pytest.raises(InputError, match=r"birds\.\w+': is not on this machine"):
        pixels(open_dataset(tmp_path / "out"))
    archives(birds, tmp_path / "packed")[kind].write_bytes(b"another")
    with pytest.raises(InputError, match="has changed since the data set was prepared"):
        pixels(open_dataset(tmp_path / "out"))
    assert not [p for p in (tmp_path / "out" / "images").iterdir() if p.name != ".lock"], "leftovers"


def test_small_sets_folders_and_foreign_kinds_are_as_ever(store: Any, birds: Path, tmp_path: Path) -> None:
    small = DataConfig(dataset="s3://bucket/birds")
    assert refer(small, tmp_path / "small").storage == "arrays"
    assert Dataset.open(tmp_path / "small").manifest.origin == Origin()
    in_place = refer(of(birds), tmp_path / "folder")
    assert (in_place.root, in_place.origin) == (str(birds), Origin())
    assert refer(of(birds / "list.csv"), tmp_path / "list").root == str(birds)


def test_only_what_is_read_is_fetched_and_once(store: Any, tmp_path: Path, asked: list[str]) -> None:
    manifest = refer(of("s3://bucket/birds", probe_size=2), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    assert len(data.split("test").labels) == manifest.sizes["test"]
    assert not asked, "labels need no files"
    assert len(list(data.probe().batches(2, workers=0))) == 1
    assert len(asked) == len(data.probe()) == 2
    pixels(data, "val")
    assert len(asked) == len(set(asked)) == manifest.sizes["val"]
    pixels(open_dataset(tmp_path / "out"), "val")
    assert len(asked) == manifest.sizes["val"], "what is here is not fetched again"


def test_a_home_has_them_once_for_all_data_sets(
    store: Any, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCO_IMAGES", str(tmp_path / "home"))
    refer(of("s3://bucket/birds"), tmp_path / "out")
    other = refer(of("s3://bucket/birds", data_seed=3), tmp_path / "other")
    for name in ("out", "other"):
        pixels(open_dataset(tmp_path / name))
    assert not asked, "the preparation has left them there"
    (place,) = (tmp_path / "home").iterdir()
    assert len(list(place.rglob("*.png"))) == 2 * COUNT
    # Another content at the same address has a place of its own.
    store.put_object(Bucket="bucket", Key="birds/kite/00.png", Body=(tmp_path / "birds/kite/01.png").read_bytes())
    assert refer(of("s3://bucket/birds"), tmp_path / "third").origin.sha256 != other.origin.sha256
    assert len(list((tmp_path / "home").iterdir())) == 2


def test_interrupted_fetching_goes_on(store: Any, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = refer(of("s3://bucket/birds"), tmp_path / "out")
    monkeypatch.setattr(transfer, "_AT_ONCE", 1)
    original = transfer._receive

    def stops(*args: Any) -> None:
        if len(asked) == 7:
            raise KeyboardInterrupt
        original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_receive", stops)
        with pytest.raises(KeyboardInterrupt):
            pixels(open_dataset(tmp_path / "out"))
    assert len(asked) == 7
    whole = next((tmp_path / "out" / "images").rglob("*.png"))
    whole.write_bytes(whole.read_bytes()[:-1])  # as a machine that lost its power may leave it
    assert len(pixels(open_dataset(tmp_path / "out"))) == manifest.sizes["train"]
    assert len(asked) == manifest.sizes["train"] + 1
    assert not list((tmp_path / "out").rglob(".fetch-*"))


def test_what_has_changed_is_refused_by_name(store: Any, tmp_path: Path) -> None:
    refer(of("s3://bucket/birds"), tmp_path / "out")
    train = Dataset.open(tmp_path / "out").split("train")._listed[0]  # type: ignore[attr-defined]
    body = store.get_object(Bucket="bucket", Key=f"birds/{train[0]}")["Body"].read()
    store.put_object(Bucket="bucket", Key=f"birds/{train[0]}", Body=body[:-1] + b"x")
    with pytest.raises(InputError) as caught:
        pixels(open_dataset(tmp_path / "out"))
    expected = f"has changed: 1 of {len(train)} files ({train[0]} holds something else), since the data set was prepared"
    assert (caught.value.parameter, caught.value.value) == ("dataset", "s3://bucket/birds")
    assert caught.value.problem == expected
    assert "start the run again" in caught.value.remedy
    store.delete_object(Bucket="bucket", Key=f"birds/{train[1]}")
    store.put_object(Bucket="bucket", Key=f"birds/{train[2]}", Body=body + b"longer")
    shutil.rmtree(tmp_path / "out" / "images")
    with pytest.raises(InputError) as caught:
        pixels(open_dataset(tmp_path / "out"))
    assert f"{train[1]} is gone" in str(caught.value)
    assert f"{train[2]} has {len(body) + 6} bytes, and had" in str(caught.value)
    for name in train[3:]:
        store.delete_object(Bucket="bucket", Key=f"birds/{name}")
    shutil.rmtree(tmp_path / "out" / "images")
    with pytest.raises(InputError, match=rf"has changed: \d or more of {len(train)} files"):
        pixels(open_dataset(tmp_path / "out"))
    transfer.upload(tmp_path / "birds", "s3://bucket/birds")  # put back, it is what it was, whatever its time
    assert len(pixels(open_dataset(tmp_path / "out"))) == len(train)


def test_damage_on_the_way_is_no_change(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = refer(of("s3://bucket/birds"), tmp_path / "out")
    original, damaged = transfer._receive, set[str]()

    class Damaging:
        """A client that damages the first answer for each key."""

        def __init__(self, client: Any) -> None:
            self.client = client

        def get_object(self, **request: Any) -> Any:
            answer = self.client.get_object(**request)
            if request["Key"] not in damaged:
                damaged.add(request["Key"])
                content = answer["Body"].read()
                answer["Body"] = StreamingBody(BytesIO(b"x" + content[1:]), len(content))
            return answer

    monkeypatch.setattr(transfer, "_receive", lambda client, *rest: original(Damaging(client), *rest))
    assert len(pixels(open_dataset(tmp_path / "out"))) == len(damaged) == manifest.sizes["train"]


def test_archive_in_a_store_that_has_changed(store: Any, birds: Path, tmp_path: Path) -> None:
    transfer.upload(archives(birds, tmp_path / "packed")["zip"], "s3://bucket/")
    refer(of("s3://bucket/birds.zip"), tmp_path / "out")
    (birds / "kite" / "00.png").unlink()
    transfer.upload(archives(birds, tmp_path / "packed")["zip"], "s3://bucket/")
    with pytest.raises(InputError, match=r"s3://bucket/birds\.zip': has changed since the data set was prepared"):
        pixels(open_dataset(tmp_path / "out"))
    store.delete_object(Bucket="bucket", Key="birds.zip")
    with pytest.raises(InputError, match=r"dataset = 's3://bucket/birds\.zip': (does not exist|holds no objects)"):
        pixels(open_dataset(tmp_path / "out"))


def test_several_readers_fetch_once(store: Any, tmp_path: Path, asked: list[str], caplog: pytest.LogCaptureFixture) -> None:
    manifest = refer(of("s3://bucket/birds"), tmp_path / "out")
    found: list[int] = []
    with caplog.at_level(logging.INFO, "rco"):
        threads = [threading.Thread(target=lambda: found.append(len(pixels(open_dataset(tmp_path / "out"))))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [manifest.sizes["train"]] * 4
    assert len(asked) == manifest.sizes["train"]
    assert f"fetching {len(asked)} images of s3://bucket/birds" in caplog.text


def test_no_room(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    refer(of("s3://bucket/birds"), tmp_path / "out")
    monkeypatch.setattr(referred.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"has room for 0\.00 GB.*RCO_IMAGES"):
        pixels(open_dataset(tmp_path / "out"))
    assert not asked


def test_folder_that_cannot_be_written(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = refer(of("s3://bucket/birds"), tmp_path / "out")
    (tmp_path / "out" / "images").write_text("a file: no folder can be made")
    monkeypatch.setattr(referred.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert len(pixels(open_dataset(tmp_path / "out"))) == manifest.sizes["train"]
    assert len(list((tmp_path / "temporary").rglob("*.png"))) == manifest.sizes["train"]


def test_broken_files_that_are_left_out_are_not_fetched(store: Any, tmp_path: Path, asked: list[str]) -> None:
    store.put_object(Bucket="bucket", Key="birds/kite/03.png", Body=b"no picture")
    manifest = refer(of("s3://bucket/birds", skip_broken=True), tmp_path / "out")
    for part in manifest.sizes:
        pixels(open_dataset(tmp_path / "out"), part)
    assert len(asked) == sum(manifest.sizes.values()) == 2 * COUNT - 1
    assert "birds/kite/03.png" not in asked


def test_without_somebody_who_brings_them(store: Any, tmp_path: Path) -> None:
    refer(of("s3://bucket/birds"), tmp_path / "out")
    with pytest.raises(InputError, match=r"has its image files in s3://bucket/birds.*open_dataset"):
        pixels(Dataset.open(tmp_path / "out"))


def test_digests_that_do_not_fit(store: Any, tmp_path: Path) -> None:
    refer(of("s3://bucket/birds"), tmp_path / "out")
    path = digests_file(tmp_path / "out", "train")
    arrays, _ = load_arrays(path)
    save_arrays(path, {name: array[1:] for name, array in arrays.items()})
    with pytest.raises(InputError, match="has other digests than its manifest says"):
        pixels(open_dataset(tmp_path / "out"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "s3://key:secret@bucket/x", "sha256": "0" * 64},
        {"address": "/images", "sha256": "0" * 64},  # a folder, which is read in place
        {"address": "images.zip", "sha256": "0" * 64, "archive": True},
        {"address": "https://host/x.zip", "sha256": "0" * 64, "archive": True},
        {"address": "s3://bucket/x", "sha256": "../.."},
        {"sha256": "0" * 64},
    ],
)
def test_origins_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not a place from which image files are brought") as caught:
        Origin(**wrong)
    assert "secret" not in str(caught.value)


def test_arrays_have_no_origin(tmp_path: Path, birds: Path) -> None:
    manifest = refer(DataConfig(dataset=str(birds)), tmp_path / "out")
    with pytest.raises(InputError, match="origin"):
        replace(manifest, origin=Origin(address="s3://bucket/x", sha256="0" * 64))


def test_the_task_refers(store: Any, tmp_path: Path) -> None:
    from rco.core.settings import jsonable
    from rco.tasks.settings import DataSettings

    config = of("s3://bucket/birds")
    settings = jsonable(DataSettings(data=config, source_digest=source_digest(config)))
    figures = prepare_data(settings, dataset=tmp_path / "out")
    assert figures["train"] == Dataset.open(tmp_path / "out").manifest.sizes["train"]
    assert not list((tmp_path / "out").rglob("*.png"))
