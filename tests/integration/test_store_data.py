"""A whole run on a large set of images that stay in a real store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rco.core.storage.transfer import upload
from rco.data.dataset import MANIFEST, Dataset
from tests import servers
from tests.local_runs import ONE_STAGE, Ran

IMAGES = 300


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
    bucket = seaweed.make_bucket("pictures")
    upload(tmp_path / "pictures", f"{bucket}/digits")
    return f"{bucket}/digits"


def test_images_are_fetched_once_and_copied_nowhere(address: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = {"dataset": address, "in_memory_gib": 0, **ONE_STAGE}
    first = Ran(home, **settings)
    (manifest,) = home.glob(f"pipeline/*/prepare-data*/dataset/{MANIFEST}")
    data = Dataset.open(manifest.parent)
    assert data.manifest.origin.address == address
    assert not list(home.glob("pipeline/**/*.png"))
    (kept,) = (home / "images").iterdir()
    assert len(list(kept.rglob("*.png"))) == IMAGES
    log = "\n".join(first.lines)
    assert "fetching" not in log, "the preparation has left them to all other tasks"

    shutil.rmtree(home / "images")  # as `rco clean` does, or in a pod of its own
    second = Ran(home, **{**settings, "epochs": 7})
    assert "prepare-data" in second.cached or "prepare_data" in second.cached
    (kept,) = (home / "images").iterdir()
    held = len(list(kept.rglob("*.png")))
    assert data.manifest.sizes["train"] < held <= IMAGES, "what is asked for is fetched, and no more"
