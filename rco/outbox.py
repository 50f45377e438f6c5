"""The outbox: what a report could not deliver to the tracking server, as files, so that it can be delivered later.

    outbox.json             which pipeline run, its parent's name and parameters, headline figures, and the models below
    models/0/record.json    the tracking record of a model, and of the anchors that it learnt from:
    models/0/epoch-0004/    anchor.json
    weights/SHA256          the anchors' checkpoints, each once
    registration/           what the model registry still lacks, if it lacks anything

It lies in the report's folder and holds all that delivery needs: the artifact of one task is enough, wherever it is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco import checkpoint
from rco.errors import InputError
from rco.record import Record
from rco.tracking import Context, Delivery, deliver, open_parent, without_credentials

FOLDER = "outbox"
REGISTRATION = "registration"
_INDEX, _ANCHOR, _ABOUT = "outbox.json", "anchor.safetensors", "anchor.json"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """What the tracking server is to be told of a pipeline run that has ended.

    Attributes:
        parent: keyword arguments of `rco.tracking.open_parent`.
        headline, note: as for `rco.tracking.deliver`.
    """

    parent: Mapping[str, Any]
    deliveries: list[Delivery]
    headline: Mapping[str, float]
    note: str = ""

    def send(self, context: Context, files: Iterable[Path]) -> str:
        """Deliver it; returns the parent's run id. Safe to repeat: what the server has is not sent again.

        Args:
            files: pictures and tables for the parent's artifacts.
        """
        open_parent(context, **self.parent)
        return deliver(context, self.deliveries, headline=self.headline, files=files, note=self.note)


def keep(report: Path, letter: Letter, context: Context, registration: Callable[[Path], object] | None = None) -> Path:
    """Put a letter into the outbox of a report's folder; returns the outbox. A letter that is there is replaced.

    Args:
        registration: writes into the folder that it is given whatever the registration of the model needs.
    """
    outbox = report / FOLDER
    shutil.rmtree(outbox, ignore_errors=True)
    models = []
    for number, delivery in enumerate(letter.deliveries):
        folder = outbox / "models" / str(number)
        delivery.record.write(folder)
        for epoch, anchor in delivery.anchors.items():
            with anchor() as source:
                about = checkpoint.read_json(source / _ABOUT)
                weights = outbox / "weights" / about["sha256"]
                if not weights.exists():
                    checkpoint.atomically(weights, partial(shutil.copyfile, source / _ANCHOR))
            checkpoint.write_json(folder / f"epoch-{epoch:04d}" / _ABOUT, about)
        models.append({"metrics": delivery.metrics, "tags": delivery.tags, "anchors": list(delivery.anchors)})
    if registration is not None:
        (outbox / REGISTRATION).mkdir()
        registration(outbox / REGISTRATION)
    # Last: an outbox without its index is one whose writing was cut short, and nobody takes it for a letter.
    checkpoint.write_json(
        outbox / _INDEX,
        {
            "pipeline_run": context.pipeline_run,
            "tracking_uri": without_credentials(context.tracking_uri),
            "parent": letter.parent,
            "headline": letter.headline,
            "note": letter.note,
            "models": models,
        },
    )
    return outbox


def waiting(report: Path) -> bool:
    """Whether a report's folder holds a letter."""
    return (report / FOLDER / _INDEX).is_file()


def take(report: Path) -> tuple[Letter, str, str]:
    """The letter in a report's folder, the pipeline run that it is about, and the server that it was meant for.

    Raises:
        InputError: there is none, or it is damaged.
    """
    outbox = report / FOLDER
    document = checkpoint.read_json(outbox / _INDEX)
    try:
        deliveries = [
            Delivery(
                record=Record.read(outbox / "models" / str(number)),
                anchors={int(epoch): partial(_anchor, outbox, number, int(epoch)) for epoch in model["anchors"]},
                metrics=model["metrics"],
                tags=model["tags"],
            )
            for number, model in enumerate(document["models"])
        ]
        letter = Letter(parent=document["parent"], deliveries=deliveries, headline=document["headline"], note=document["note"])
        return letter, str(document["pipeline_run"]), str(document["tracking_uri"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "outbox", str(outbox), f"is damaged ({type(error).__name__}: {error})", "Copy the report's folder again, whole"
        ) from None


def clear(report: Path) -> None:
    """Forget the letter: it has been delivered."""
    outbox = report / FOLDER
    (outbox / _INDEX).unlink(missing_ok=True)
    shutil.rmtree(outbox, ignore_errors=True)


@contextlib.contextmanager
def _anchor(outbox: Path, number: int, epoch: int) -> Iterator[Path]:
    """An anchor as a folder again."""
    about = outbox / "models" / str(number) / f"epoch-{epoch:04d}" / _ABOUT
    sha256 = str(checkpoint.read_json(about)["sha256"])
    if not sha256.isalnum():
        raise InputError("outbox", str(about), f"names the sha256 {sha256!r}", "Copy the report's folder again, whole")
    with TemporaryDirectory() as scratch:
        shutil.copyfile(about, Path(scratch, _ABOUT))
        weights = (outbox / "weights" / sha256).resolve()
        checkpoint.verify(weights, sha256)
        os.symlink(weights, Path(scratch, _ANCHOR))
        yield Path(scratch)
