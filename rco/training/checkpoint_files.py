"""Which files are the checkpoints of a training, and of which epochs: by their names, or by what they say themselves.

ckpt_epoch_40.pth  epoch_40  epoch=9-step=700.ckpt  e10.pt     a number after the word
student_40  model_080.pt  10.pth                               the one number in which the names of a series differ
best.pth  last.pth                                             the epoch that is written in the file
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rco.core.errors import InputError
from rco.core.words import counted
from rco.models.weights import read_epoch

_SUFFIXES = ("", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".pkl", ".safetensors")
_TORCH = (b"PK\x03\x04", b"\x80")  # how torch's files begin: an archive, or a pickle
_EPOCH = re.compile(r"(?<![a-z])(?:epochs?|ep|e)[-_=. ]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_OTHER_COUNT = re.compile(
    r"(?:step|iter|iters|iteration|batch|seed|fold|trial|run|rank|gpu|part|shard|version|v)s?[-_=. ]?$", re.I
)
_DIGITS = 9  # no training has more epochs


@dataclass(frozen=True)
class CheckpointFiles:
    """The checkpoints of one training.

    Attributes:
        files: (epoch, file), in increasing order of epochs.
        left_out: names of files that lie beside them and say no epoch.
    """

    files: tuple[tuple[int, Path], ...]
    left_out: tuple[str, ...] = ()


def find_checkpoints(paths: Sequence[Path]) -> CheckpointFiles:
    """The checkpoints that `paths` name: one folder, whose own files are looked at, or files.

    Raises:
        InputError: a path is missing; no epochs can be told, or two files are of one; in a folder lie several series of
            checkpoints; of files that are named one by one, some do not say their epoch.
    """
    for path in paths:
        if not path.exists():
            raise InputError("checkpoint", str(path), "is missing", "Check the path")
    if folders := [path for path in paths if path.is_dir()]:
        if len(paths) > 1:
            raise InputError("checkpoints", str(folders[0]), "is a folder beside other paths", "Name one folder, or files")
        files = [path for path in sorted(folders[0].iterdir()) if _may_be_checkpoint(path)]
        if not files:
            raise InputError(
                "checkpoints", str(folders[0]), "holds no files of weights", "Name the folder in which they lie, or the files"
            )
    else:
        files = list(paths)
    where = str(folders[0]) if folders else _shown([path.name for path in files])
    epochs = _by_word(files, where) or _by_contents_or_number(files, where)
    left_out = [path for path in files if path not in epochs]
    if not epochs or (left_out and not folders):
        raise InputError(
            "epochs",
            _shown([path.name for path in left_out]),
            "are not in the names of these files, nor in them",
            "Name the files in the order of the training and their epochs with --epochs 10,20,40",
        )
    _require_one_each(epochs)
    ordered = sorted((epoch, path) for path, epoch in epochs.items())
    return CheckpointFiles(tuple(ordered), tuple(path.name for path in left_out))


def _may_be_checkpoint(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file() or path.suffix.lower() not in (*_SUFFIXES, *_numeric_suffix(path)):
        return False
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        return file.read(4).startswith(_TORCH)


def _numeric_suffix(path: Path) -> list[str]:
    # Of "model.10" the suffix is a number.
    return [path.suffix.lower()] if path.suffix[1:].isdigit() else []


def _by_word(files: Sequence[Path], where: str) -> dict[Path, int]:
    """The epochs of the files whose names have one after the word."""
    found = {path: int(match[1][:_DIGITS]) for path in files if (match := _EPOCH.search(path.name))}
    return _the_series(found, where, lambda path: _NUMBER.sub("#", path.name))


def _by_contents_or_number(files: Sequence[Path], where: str) -> dict[Path, int]:
    """The epochs in the files; if not all of a series have one, the numbers in their names."""
    inside = {path: epoch for path in files if (epoch := _epoch_inside(path)) is not None}
    numbered = _by_number(files)
    if numbered and not all(path in inside for path in numbered):
        return _the_series(numbered, where, lambda path: _NUMBER.sub("#", path.name))
    return inside


def _by_number(files: Sequence[Path]) -> dict[Path, int]:
    """The number in which the names of files differ that are alike otherwise."""
    alike: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        alike[_NUMBER.sub("#", path.name)].append(path)
    found: dict[Path, int] = {}
    for series in alike.values():
        numbers = [list(_NUMBER.finditer(path.name)) for path in series]
        differing = [i for i in range(len(numbers[0])) if len({match[i][0] for match in numbers}) > 1]
        if len(differing) == 1 and not any(
            _OTHER_COUNT.search(path.name[: match[differing[0]].start()]) for path, match in zip(series, numbers, strict=True)
        ):
            found |= {path: int(match[differing[0]][0][:_DIGITS]) for path, match in zip(series, numbers, strict=True)}
    return found


def _the_series(found: Mapping[Path, int], where: str, likeness: Callable[[Path], str]) -> dict[Path, int]:
    """What was found, if all of it is one series of names.

    Raises:
        InputError: it is several.
    """
    series: dict[str, list[str]] = defaultdict(list)
    for path in found:
        series[likeness(path)].append(path.name)
    if len(series) > 1:
        examples = ", ".join(f"{names[0]} ({counted(len(names), 'file')})" for names in list(series.values())[:3])
        raise InputError(
            "checkpoints",
            where,
            f"has {counted(len(series), 'series', 'series')} of checkpoints: {examples}",
            "Name the files of one",
        )
    return dict(found)


def _epoch_inside(path: Path) -> int | None:
    try:
        return read_epoch(path)
    except InputError:  # it may be anything; if it is needed, it will be read again
        return None


def _require_one_each(epochs: Mapping[Path, int]) -> None:
    files: dict[int, list[str]] = defaultdict(list)
    for path, epoch in epochs.items():
        files[epoch].append(path.name)
    twice = {epoch: names for epoch, names in files.items() if len(names) > 1}
    for epoch, names in twice.items():
        more = f", and {counted(len(twice) - 1, 'epoch')} more likewise" if len(twice) > 1 else ""
        raise InputError("epochs", epoch, f"is of several files: {_shown(names)}{more}", "Name the files of one training")


def _shown(names: Collection[str]) -> str:
    first = list(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
