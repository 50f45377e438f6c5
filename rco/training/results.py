"""Results of trainings, found by their identity: what was computed once is not computed again, whichever run asks for it.

    RCO_RESULTS                     a folder or an s3:// address; empty or unset: nothing is kept, and nothing is found
    RCO_RESULTS/HASH/manifest.json  kind, label, when, the identity, and of every file its sha256; written last
    RCO_RESULTS/HASH/SHA256-NAME    the files: weights, logits, and training.json, which says how the training went

HASH is that of the identity: all that the result depends on, the code and the machine that compute included. Names of runs,
parameters and tags are no part of it: they are the record's, and each run writes its own.

Names differ where contents do, and the manifest comes last: so a result is whole or is not there, and of two processes that
write the same one at once, the later's stays. A folder of results can be deleted at any time, or any folder in it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco.core.documents import read_as, write_json
from rco.core.errors import InputError, printable
from rco.core.files import sha256_of, verify
from rco.core.settings import no_credentials
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.contents import exists, remove
from rco.core.storage.transfer import fetch, upload
from rco.tracking.record import Row
from rco.training.identity import complete, difference, name_of

log = logging.getLogger("rco")

VARIABLE = "RCO_RESULTS"
MANIFEST, TRAINING = "manifest.json", "training.json"
_FORMAT = 1
_SHA256 = re.compile("[0-9a-f]{64}")
_REMEDY = "Delete it: it is computed anew"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training went.

    Attributes:
        pipeline_run: that it was a part of; empty: of none.
        mlflow_run: id of the run that tracked it; empty: it was not tracked.
        rows: its epochs, as a record has them.
    """

    pipeline_run: str
    mlflow_run: str
    rows: tuple[Row, ...]

    @property
    def words(self) -> str:
        """What the log says of a training that was found."""
        by = f"run {self.pipeline_run}" if self.pipeline_run else "a process of no run"
        return f"found, trained by {by}: nothing is trained"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What lies in the folder of one result.

    Attributes:
        kind: "stage" or "route".
        label: what was trained, in words.
        created: seconds since 1970.
        files: sha256 by name.
    """

    format: int
    kind: str
    label: str
    created: float
    identity: dict[str, Any]
    files: dict[str, str]


class Result:
    """The result of one training: where it lies, if anywhere.

    Args:
        kind: as in the manifest.
        identity: all that the result depends on; JSON.
        names: of the files that it has.
        label: what is trained, in words.

    Raises:
        InputError: RCO_RESULTS holds credentials.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any], names: Collection[str], *, label: str) -> None:
        root = os.environ.get(VARIABLE, "")
        no_credentials(VARIABLE, root)
        self.kind, self.names, self.label = kind, names, label
        self.identity = complete({"kind": kind, **identity}, format=_FORMAT) if root else {}
        self.folder = f"{root.rstrip('/')}/{name_of(self.identity, 32)}" if root else ""

    def find(self, into: Path, check: Callable[[Path, Training], object]) -> Training | None:
        """Bring the files of the result into a folder, if there is one; returns how its training went.

        What is damaged, incomplete or cannot be had is not used, and `into` stays as it was: a warning, and None.

        Args:
            check: refuses what is not right (InputError); it is given a folder with the files.
        """
        if not self.folder:
            return None
        try:
            if not exists(self._at(MANIFEST)):
                return None
            into.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=into.parent, prefix=".result-") as scratch:
                whole = Path(scratch) / "whole"
                whole.mkdir()
                training = self._read(Path(scratch), whole)
                check(whole, training)
                into.mkdir(exist_ok=True)
                for name in self.names:
                    os.replace(whole / name, into / name)
            if not is_remote(self.folder):
                with suppress(OSError):  # who makes room looks at what was used last
                    os.utime(local_path(self._at(MANIFEST)))
            return training
        except Exception as error:
            log.warning("%s: the result in %s is not used (%s): it is computed anew", self.label, self.folder, _brief(error))
            return None

    def store(self, folder: Path, training: Training) -> None:
        """Keep what a training has left in a folder. That it cannot be kept is a warning: nobody depends on it."""
        if not self.folder:
            return
        try:
            with TemporaryDirectory() as scratch:
                about = Path(scratch) / TRAINING
                write_json(about, training)
                files = {}
                for name, path in {TRAINING: about, **{name: folder / name for name in self.names}}.items():
                    files[name] = sha256_of(path)
                    upload(path, self._at(_stored(name, files[name])))
                manifest = Manifest(
                    format=_FORMAT, kind=self.kind, label=self.label, created=time.time(), identity=self.identity, files=files
                )
                write_json(Path(scratch) / MANIFEST, manifest)
                upload(Path(scratch) / MANIFEST, self._at(MANIFEST))
        except Exception as error:
            log.warning("%s: the result was not kept (%s); the work goes on", self.label, _brief(error))
            self._tidy()

    def _at(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _read(self, scratch: Path, whole: Path) -> Training:
        """The result's files in `whole`, each as its sha256 says.

        Raises:
            InputError: it is damaged, or not of this training.
        """
        manifest = read_as(Manifest, fetch(self._at(MANIFEST), scratch), _REMEDY)
        if manifest.identity != self.identity:
            raise InputError("manifest", MANIFEST, f"is of another: {difference(manifest.identity, self.identity)}", _REMEDY)
        if set(manifest.files) != {TRAINING, *self.names} or not all(map(_SHA256.fullmatch, manifest.files.values())):
            raise InputError("manifest", MANIFEST, "names other files", _REMEDY)
        for name, digest in manifest.files.items():
            source = fetch(self._at(_stored(name, digest)), scratch)
            if source.parent == scratch:
                os.replace(source, whole / name)
            else:
                shutil.copyfile(source, whole / name)
            verify(whole / name, digest)
        return read_as(Training, whole / TRAINING, _REMEDY)

    def _tidy(self) -> None:
        """Remove what was written of a result that is not whole: the disk may be full."""
        with suppress(Exception):
            if not is_remote(self.folder) and not exists(self._at(MANIFEST)):
                remove(self.folder)


def _stored(name: str, digest: str) -> str:
    return f"{digest}-{name}"


def _brief(error: Exception) -> str:
    words = (
        f"{Path(str(error.value)).name} {error.problem}"
        if isinstance(error, InputError)
        else f"{type(error).__name__}: {error}"
    )
    return printable(words)
