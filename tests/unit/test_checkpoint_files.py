"""Which files of a folder are a training's checkpoints, and of which epochs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rco.core.errors import InputError
from rco.models.spec import NetworkSpec, save_network
from rco.training.checkpoint_files import find_checkpoints

SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=3, image_size=8)


def write(folder: Path, epochs: Mapping[str, int | None]) -> Path:
    """Files by name, with the epoch that each says inside."""
    for name, epoch in epochs.items():
        inside = {"state_dict": {"w": torch.zeros(1)}}
        torch.save(inside if epoch is None else {**inside, "epoch": epoch}, folder / name)
    return folder


def found(folder: Path) -> list[tuple[int, str]]:
    return [(epoch, path.name) for epoch, path in find_checkpoints([folder]).files]


def test_repdistiller(tmp_path: Path) -> None:
    series = {f"ckpt_epoch_{epoch}.pth": epoch for epoch in (40, 80, 120, 160, 200, 240)}
    write(tmp_path, {**series, "resnet8x4_best.pth": 231, "resnet8x4_last.pth": None})
    (tmp_path / "log.txt").write_text("epoch 40")
    assert found(tmp_path) == [(epoch, name) for name, epoch in series.items()]
    assert find_checkpoints([tmp_path]).left_out == ("resnet8x4_best.pth", "resnet8x4_last.pth")


def test_mdistiller(tmp_path: Path) -> None:
    series = {f"epoch_{epoch}": epoch for epoch in (40, 80, 120)}
    write(tmp_path, {**series, "latest": 121, "best": 80, **{f"student_{epoch}": None for epoch in (40, 80, 120)}})
    (tmp_path / "train.events").mkdir()
    (tmp_path / "README").write_text("epoch 40")
    assert found(tmp_path) == [(epoch, name) for name, epoch in series.items()]
    for name in series:
        (tmp_path / name).unlink()
    for name in ("latest", "best"):
        (tmp_path / name).unlink()
    assert found(tmp_path) == [(40, "student_40"), (80, "student_80"), (120, "student_120")]


@pytest.mark.parametrize(
    ("names", "epochs"),
    [
        (("epoch=9-step=700.ckpt", "epoch=19-step=1400.ckpt"), [9, 19]),
        (("e2.pt", "e10.pt"), [2, 10]),
        (("model_080.pt", "model_120.pt"), [80, 120]),
        (("10.pth", "9.pth"), [9, 10]),
        (("checkpoint_0010.pth.tar", "checkpoint_0002.pth.tar"), [2, 10]),
        (("wrn-40-2.10.pt", "wrn-40-2.20.pt"), [10, 20]),
        (("Epoch-0.pt", "Epoch-1.pt"), [0, 1]),
        (("resnet8x4_epoch40.pth",), [40]),
    ],
)
def test_epochs_in_names(names: tuple[str, ...], epochs: list[int], tmp_path: Path) -> None:
    assert [epoch for epoch, _ in found(write(tmp_path, dict.fromkeys(names)))] == epochs


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=6))
def test_epochs_are_ordered_as_numbers(epochs: set[int]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as scratch:
        for epoch in epochs:
            (Path(scratch) / f"net_epoch{epoch}.pth").write_bytes(b"PK\x03\x04")
        assert [epoch for epoch, _ in find_checkpoints([Path(scratch)]).files] == sorted(epochs)


def test_epochs_in_files(tmp_path: Path) -> None:
    write(tmp_path, {"best.pth": 7, "last.pth": 12, "swa.pth": None})
    assert found(tmp_path) == [(7, "best.pth"), (12, "last.pth")]
    assert find_checkpoints([tmp_path]).left_out == ("swa.pth",)


def test_an_epoch_in_a_file_wins_over_a_number_that_is_not_called_one(tmp_path: Path) -> None:
    write(tmp_path, {"model_1.pt": 60, "model_2.pt": 120})
    assert found(tmp_path) == [(60, "model_1.pt"), (120, "model_2.pt")]


def test_safetensors_say_their_epoch_too(tmp_path: Path) -> None:
    for name, epoch in (("old.safetensors", 4), ("new.safetensors", 8)):
        save_network(tmp_path / name, SPEC.build(0), SPEC, epoch=epoch)
    assert found(tmp_path) == [(4, "old.safetensors"), (8, "new.safetensors")]


def test_files_instead_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, {"epoch_2": None, "epoch_10": None, "student_2": None, "best": None})
    files = find_checkpoints([tmp_path / "epoch_10", tmp_path / "epoch_2"]).files
    assert [epoch for epoch, _ in files] == [2, 10]
    with pytest.raises(InputError, match=r"epochs = 'best': are not in the names of these files, nor in them"):
        find_checkpoints([tmp_path / "epoch_10", tmp_path / "best"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"a_epoch_1.pt": None, "b_epoch_1.pt": None}, r"2 series of checkpoints: a_epoch_1.pt \(1 file\), b_epoch_1.pt"),
        ({"r8_epoch_1.pt": None, "r20_epoch_1.pt": None}, "epochs = 1: is of several files: r20_epoch_1.pt, r8_epoch_1.pt"),
        ({"a_1.pt": None, "a_2.pt": None, "b_1.pt": None, "b_2.pt": None}, "2 series of checkpoints"),
        ({"best.pth": 240, "last.pth": 240}, "is of several files: best.pth, last.pth"),
        ({"step_100.pt": None, "step_200.pt": None}, "are not in the names"),
        ({"seed0.pt": None, "seed1.pt": None}, "are not in the names"),
        ({"best.pth": None}, "are not in the names"),
        ({"resnet20.pth": None}, "are not in the names"),
        ({"epoch_1.txt": None}, "holds no files of weights"),
        ({}, "holds no files of weights"),
    ],
)
def test_what_cannot_be_told_is_refused(names: dict[str, int | None], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        find_checkpoints([write(tmp_path, names)])


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'no'}': is missing")):
        find_checkpoints([tmp_path / "no"])
    with pytest.raises(InputError, match="is a folder beside other paths"):
        find_checkpoints([tmp_path, tmp_path])


def test_many_that_cannot_be_told_fit_on_a_line(tmp_path: Path) -> None:
    write(tmp_path, {f"step_{i:03d}.pt": None for i in range(40)})
    with pytest.raises(InputError, match=r"step_000.pt, step_001.pt, step_002.pt and 37 more"):
        find_checkpoints([tmp_path])
