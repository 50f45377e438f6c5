"""A trained student, wherever it lies, with all that it takes to answer about images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rco.core.documents import read_json
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.storage.addresses import is_remote
from rco.core.tensors import load_state
from rco.data.inputs import Inputs
from rco.models.spec import described, load_network

if TYPE_CHECKING:
    from torch import nn

STUDENT = "student.safetensors"
_REMEDY = "Name a run, a folder with student.safetensors, models:/NAME@champion, or an .onnx file"


@dataclass(frozen=True)
class Shipped:
    """A student.

    Attributes:
        network: takes normalised images; in evaluation mode, on the CPU.
        inputs: how images are brought to it.
        model: its name.
        sha256: of its weights.
        origin: where it was found, for people.
        data_digest: of the prepared data set that it was trained on; empty: not known.
        measured: what the report of its run says of teacher and student; empty: there is none.
    """

    network: nn.Module
    inputs: Inputs
    model: str
    sha256: str
    origin: str
    data_digest: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def normalised(self) -> nn.Module:
        """The network for pixels in 0..1."""
        import torch

        from rco.models.normalized import Normalized

        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (self.inputs.mean, self.inputs.std))
        return Normalized(self.network, mean, std).eval()


@contextmanager
def folder_of(where: str, home: Path) -> Iterator[tuple[Path, str]]:
    """The folder of a student, and where it is in words.

    Args:
        where: a run of this machine, a folder, an s3:// address or a model in MLflow; empty: the last run.
        home: of local runs.

    Raises:
        InputError: nothing there, or it holds no student.
    """
    if where.startswith("models:/"):
        with TemporaryDirectory() as scratch:
            yield _only(_downloaded(where, home, Path(scratch)), where), where
        return
    if is_remote(where):
        from rco.core.storage.transfer import fetch

        with TemporaryDirectory() as scratch:
            yield _only(fetch(where, Path(scratch) / "student"), where), where
        return
    path = home / "last-run" if not where else Path(where).expanduser()
    if where and not path.exists() and (home / "runs" / where).is_dir():
        path = home / "runs" / where / "report"
    if not path.exists():
        problem = "is not there: no run has ended in this home" if not where else "is neither a run of this home nor a folder"
        raise InputError("student", where or str(path), problem, _REMEDY if where else "Start one with: make run")
    yield _only(path.parent if path.name == STUDENT else path, where or str(path)), where or str(path)


def _only(folder: Path, where: str) -> Path:
    found = [folder] if (folder / STUDENT).is_file() else sorted({path.parent for path in folder.rglob(STUDENT)})
    if len(found) != 1:
        what = "no student" if not found else f"{len(found)} students, such as {found[0].name} and {found[1].name}"
        raise InputError("student", where, f"holds {what}", _REMEDY)
    return found[0]


def _downloaded(uri: str, home: Path, scratch: Path) -> Path:
    import os

    from rco.tracking.moved import database_uri
    from rco.tracking.registry import download

    local = database_uri(home.resolve()) if (home / "mlflow.db").is_file() else ""
    return download(uri, "student", tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or local, folder=scratch)


@contextmanager
def shipped(where: str, home: Path, *, model: str = "") -> Iterator[Shipped]:
    """A student, for as long as it is needed.

    Args:
        where, home: as for `folder_of`.
        model: what its network is; needed for code that is not ours, which runs because the user names it.

    Raises:
        InputError: as `folder_of`; a damaged file; or code that only the file names.
    """
    with folder_of(where, home) as (folder, origin):
        weights = folder / STUDENT
        state, metadata = load_state(weights)
        spec = described(metadata, weights)
        if model and model != spec.model:
            raise InputError("model", model, f"is not what {origin} says that it is ({spec.model})", "Name that one")
        del state
        network = load_network(weights, spec=replace(spec, model=model) if model else None)
        report = folder.parent / "summary.json"
        record = folder / "record.json"
        yield Shipped(
            network=network,
            inputs=Inputs.read(folder),
            model=spec.model,
            sha256=sha256_of(weights),
            origin=origin,
            data_digest=str(read_json(record)["data"]["digest"]) if record.is_file() else "",
            measured=read_json(report) if report.is_file() else {},
        )
