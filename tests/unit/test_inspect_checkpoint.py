"""What `rco inspect` says of a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pipelines.cli.main import main
from rco.models.build import build_network


def state(model: str) -> dict[str, Any]:
    return build_network(model, in_channels=3, num_classes=7, image_size=32, seed=0).state_dict()


def inspected(content: Any, folder: Path, name: str = "ckpt.pth") -> dict[str, Any]:
    torch.save(content, folder / name)
    done = CliRunner().invoke(main, ["inspect", str(folder / name), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


def test_it_says_what_is_there_and_which_network_it_fits(tmp_path: Path) -> None:
    weights = {f"module.{name}": tensor for name, tensor in state("resnet8").items()}
    content = {"epoch": 40, "model": weights, "opt": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    found = inspected(content, tmp_path)
    assert found["epoch"] == 40
    (place,) = found["places"]
    assert (place["name"], place["tensors"]) == ("model", len(weights))
    assert place["numbers"] == sum(tensor.numel() for tensor in weights.values())
    assert place["fits"] == ["resnet8"]


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    (place,) = inspected(nn.Linear(4, 3).state_dict(), tmp_path)["places"]
    assert place["fits"] == []
    assert "lacks" in place["problem"]
    assert inspected({"epoch": 1}, tmp_path, "none.pt")["places"] == []


@pytest.mark.parametrize("name", ["missing.pt", "broken.safetensors"])
def test_what_cannot_be_read_is_one_paragraph(tmp_path: Path, name: str) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"nothing")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / name)])
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1


def test_lines_for_people(tmp_path: Path) -> None:
    torch.save(state("vgg8"), tmp_path / "a.pt")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.pt")])
    assert "at the top: " in done.output
    assert "fits vgg8" in done.output
