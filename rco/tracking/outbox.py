"""The outbox: what a report could not deliver to the tracking server, as files for a later delivery.

    outbox.json             which pipeline run, its parent's name and parameters, headline figures, and the models below
    models/0/record.json    the tracking record of a model, and of the anchors that it learnt from:
    models/0/epoch-0004/    anchor.json
    weights/SHA256          the anchors' checkpoints, each once
    registration/           what the model registry still lacks, if it lacks anything

It is a subfolder of the report, which holds all that delivery needs (`export/` beside it, too): a copy of this one artifact is
enough.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.files import atomically, verify
from rco.core.settings import from_dict
from rco.models.route import Anchor
from rco.tracking.context import Context, without_credentials
from rco.tracking.delivery import EXPORT, Delivery, deliver
from rco.tracking.record import Record
from rco.tracking.runs import open_parent

FOLDER = "outbox"
REGISTRATION = "registration"
_INDEX, _ANCHOR = "outbox.json", "anchor.safetensors"
_PLAIN = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True)
class PendingReport:
    """All that the tracking server must know of a pipeline run that has ended.

    Attributes:
        parent: keyword arguments of `rco.tracking.runs.open_parent`.
        headline, note: as for `rco.tracking.delivery.deliver`.
    """

    parent: Mapping[str, Any]
    deliveries: list[Delivery]
    headline: Mapping[str, float]
    note: str = ""

    def send(self, context: Context, files: Iterable[Path]) -> str:
        """Deliver the report; returns the parent's run id. Safe to repeat: nothing that the server has is sent again.

        Args:
            files: pictures and tables for the parent's artifacts.
        """
        context = replace(context, experiment=self.parent["experiment"])
        open_parent(context, **self.parent)
        return deliver(context, self.deliveries, headline=self.headline, files=files, note=self.note)


@dataclass(frozen=True, kw_only=True)
class _Model:
    metrics: dict[str, float]
    tags: dict[str, str]
    anchors: tuple[int, ...]
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.files:
            if not _PLAIN.fullmatch(name):
                raise InputError("files", name, "is not the name of a file", "")


@dataclass(frozen=True, kw_only=True)
class _Parent:
    experiment: str
    name: str
    params: dict[str, Any]
    tags: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class _Index:
    """The content of outbox.json."""

    pipeline_run: str
    tracking_uri: str
    parent: dict[str, Any]
    headline: dict[str, float]
    note: str
    models: tuple[_Model, ...]


def keep(report: Path, pending: PendingReport, context: Context, registration: Callable[[Path], object] | None = None) -> Path:
    """Write a pending report into the outbox of a report's folder, in place of an earlier one; returns the outbox.

    Args:
        registration: writes the files that the registration of the model needs into the folder that it is given.
    """
    outbox = report / FOLDER
    shutil.rmtree(outbox, ignore_errors=True)
    models = []
    for number, delivery in enumerate(pending.deliveries):
        folder = outbox / "models" / str(number)
        delivery.record.write(folder)
        for epoch, anchor in delivery.anchors.items():
            with anchor() as source:
                described = Anchor.read(source)
                weights = outbox / "weights" / described.sha256
                if not weights.exists():
                    atomically(weights, partial(shutil.copyfile, source / _ANCHOR))
            described.write(folder / f"epoch-{epoch:04d}")
        described_model = {"metrics": delivery.metrics, "tags": delivery.tags, "anchors": list(delivery.anchors)}
        models.append({**described_model, "files": [path.name for path in delivery.files]})
    if registration is not None:
        (outbox / REGISTRATION).mkdir()
        registration(outbox / REGISTRATION)
    # Last: without its index an outbox is incomplete, and does not count as pending.
    write_json(
        outbox / _INDEX,
        {
            "pipeline_run": context.pipeline_run,
            "tracking_uri": without_credentials(context.tracking_uri),
            "parent": pending.parent,
            "headline": pending.headline,
            "note": pending.note,
            "models": models,
        },
    )
    return outbox


def waiting(report: Path) -> bool:
    """Whether a report's folder holds a pending report."""
    return (report / FOLDER / _INDEX).is_file()


def take(report: Path) -> tuple[PendingReport, str, str]:
    """The pending report in a report's folder, its pipeline run, and the address of the server that it was meant for.

    Raises:
        InputError: the outbox is missing or damaged.
    """
    outbox = report / FOLDER
    try:
        index = from_dict(_Index, read_json(outbox / _INDEX))
        from_dict(_Parent, index.parent)
        if "\0" in index.pipeline_run:
            raise InputError("pipeline_run", index.pipeline_run, "is not a name", "")
        deliveries = [
            Delivery(
                record=Record.read(outbox / "models" / str(number)),
                anchors={epoch: partial(_anchor, outbox, number, epoch) for epoch in model.anchors},
                metrics=model.metrics,
                tags=model.tags,
                files=tuple(report / EXPORT / name for name in model.files),
            )
            for number, model in enumerate(index.models)
        ]
    except InputError as error:
        problem = f"is damaged ({error.parameter} {error.problem})"
        raise InputError("outbox", str(outbox), problem, "Copy the report's folder again, whole") from None
    return (
        PendingReport(parent=index.parent, deliveries=deliveries, headline=index.headline, note=index.note),
        index.pipeline_run,
        index.tracking_uri,
    )


def clear(report: Path) -> None:
    """Remove the outbox, after delivery."""
    outbox = report / FOLDER
    (outbox / _INDEX).unlink(missing_ok=True)
    shutil.rmtree(outbox, ignore_errors=True)


@contextlib.contextmanager
def _anchor(outbox: Path, number: int, epoch: int) -> Iterator[Path]:
    """An anchor of the outbox as the folder that a task writes."""
    folder = outbox / "models" / str(number) / f"epoch-{epoch:04d}"
    try:
        described = Anchor.read(folder)
    except InputError as error:
        problem = f"is damaged ({error.problem})"
        raise InputError("outbox", str(folder), problem, "Copy the report's folder again, whole") from None
    with TemporaryDirectory() as scratch:
        described.write(Path(scratch))
        weights = (outbox / "weights" / described.sha256).resolve()
        verify(weights, described.sha256)
        os.symlink(weights, Path(scratch, _ANCHOR))
        yield Path(scratch)
