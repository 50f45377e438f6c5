"""A whole run on a large set of images that stay in a real store."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rco.core.errors import InputError
from rco.core.storage.s3 import make_client
from rco.core.storage.transfer import upload
from rco.data.config import DataConfig
from rco.data.dataset import MANIFEST, PARTS, Dataset
from rco.data.prepare import prepare
from rco.data.referred import open_dataset
from rco.data.sources.kinds import source_digest
from tests import servers
from tests.local_runs import ONE_STAGE, Ran

IMAGES = 200


@pytest.fixture
def address(seaweed: servers.Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Digits as files in a store."""
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:IMAGES], digits.target, strict=False)):
        path = tmp_path / "pictures" / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).save(path)
    bucket = seaweed.make_bucket(f"pictures-{secrets.token_hex(4)}")
    upload(tmp_path / "pictures", f"{bucket}/digits")
    return f"{bucket}/digits"


def test_images_are_fetched_once_and_copied_nowhere(address: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    Ran(home, dataset=address, in_memory_gib=0, **ONE_STAGE)
    (manifest,) = home.glob(f"pipeline/*/prepare-data*/dataset/{MANIFEST}")
    data = open_dataset(manifest.parent, home / "images")
    assert data.manifest.origin.address == address
    assert not list(home.glob("pipeline/**/*.png"))
    (kept,) = (home / "images").iterdir()
    assert len(list(kept.rglob("*.png"))) == IMAGES
    (log,) = home.glob("runs/*/pipeline.log")
    assert f"images of {address}" not in log.read_text(), "the preparation has left them to all other tasks"
    shutil.rmtree(home / "images")  # as `rco clean` does; in a pod there is nothing, either
    read_again(data, IMAGES)


def test_who_has_nothing_fetches_it(address: str, tmp_path: Path) -> None:
    config = DataConfig(dataset=address, in_memory_gib=0)
    prepare(config, tmp_path / "out", source_digest(config), refer=True)
    assert not list((tmp_path / "out").rglob("*.png"))
    read_again(open_dataset(tmp_path / "out"), IMAGES)
    bucket, _, key = address.removeprefix("s3://").partition("/")
    path = next((tmp_path / "out" / "images").rglob("*.png"))
    boto = make_client()
    boto.delete_object(Bucket=bucket, Key=f"{key}/{path.parent.name}/{path.name}")
    path.unlink()
    with pytest.raises(InputError, match=rf"has changed: 1 of 1 files \({path.parent.name}/{path.name} is gone\)"):
        read_again(open_dataset(tmp_path / "out"), IMAGES)


def read_again(data: Dataset, count: int) -> None:
    """Read all images."""
    assert sum(len(y) for part in PARTS for _, y in data.split(part).batches(64, workers=0)) == count
