"""The student of a run in other formats: a part of its evaluation, which has its data at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.words import counted
from rco.data.dataset import Dataset
from rco.data.inputs import Inputs
from rco.exporting.config import FILES
from rco.tasks.process import log
from rco.tracking.delivery import EXPORT

if TYPE_CHECKING:
    from torch import nn


def write_formats(
    folder: Path, formats: Sequence[str], data: Dataset, network: nn.Module, weights: Path, model: str
) -> list[dict[str, Any]]:
    """Write a student in these formats, and measure them beside PyTorch, on the CPU and the validation part.

    One that cannot be written is said, and ends nothing: what was trained and measured is not lost by it.

    Args:
        folder: of the student's evaluation.
        network: the student, in evaluation mode, on the CPU.
        weights: its file; the inputs that it takes are told beside it.
        model: its name.

    Returns:
        what `rco.evaluation.measured.Format` reads, JSON-ready.
    """
    from rco.exporting.export import Writer, images_of_data
    from rco.exporting.shipped import Shipped

    shipped = Shipped(network, Inputs.read(weights.parent), model, sha256_of(weights), "this run")
    writer = Writer(shipped, folder / EXPORT, images_of_data(data))
    log.info("exporting the student as %s; comparing it with PyTorch on %s", ", ".join(formats), writer.images.where)
    rows: list[dict[str, Any]] = [asdict(writer.eager())]
    for name in formats:
        try:
            row = writer.write(name)
        except InputError as error:
            log.warning("the student is not exported as %s: %s", name, error)
            rows.append({"format": name, "problem": f"{error.problem}. {error.remedy}"})
            continue
        log.info("%s: %s, %.3f ms an image", name, counted(row.size, "byte"), row.latency_ms)
        rows.append(asdict(row))
    return [{name: value for name, value in row.items() if name != "path"} for row in rows]


def exported_files(evaluation: Path, measured: Mapping[str, Any]) -> dict[str, Path]:
    """Format -> the file that `write_formats` has written, in the folder of the student's evaluation.

    Args:
        measured: the document of the evaluation.
    """
    written = [row["format"] for row in measured.get("export", ()) if row["format"] in FILES and not row.get("problem")]
    return {name: evaluation / EXPORT / FILES[name] for name in written}
