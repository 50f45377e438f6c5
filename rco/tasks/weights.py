"""The weights that a network begins with: brought here from wherever they lie, and read into it.

The check does both before anything expensive, and notes the file's sha256, which is a cache key; a task does it again, and
refuses another file than the check has seen. Downloads lie in RCO_WEIGHTS, or below the user's cache.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rco.core.errors import InputError, why_unreachable
from rco.core.files import sha256_of
from rco.models.checkpoints import OtherClassesError
from rco.models.config import PRETRAINED, StartConfig
from rco.models.importing import ImportedNetwork, read_network
from rco.models.spec import NetworkSpec
from rco.tasks.process import log
from rco.tasks.settings import StartSettings

if TYPE_CHECKING:
    from torch import nn

    from rco.models.pretrained import Published

VARIABLE = "RCO_WEIGHTS"
_HUB_HASH, _SHA256 = "x-linked-etag", re.compile("[0-9a-f]{64}")
_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")


def check_start(role: str, start: StartConfig, spec: NetworkSpec) -> StartSettings | None:
    """Read the weights into the network, say what was found, and note which file it was; None: it begins with random weights.

    Args:
        role: "teacher" or "student".
        spec: of the network on this data.

    Raises:
        InputError: there are no such weights, or they do not fit; it names the role's parameter.
    """
    if not start.weights:
        return None
    with _fetched(role, start.weights, spec) as (path, left_out):
        found = _read(role, start, spec, path, left_out, seed=0)
        digest = sha256_of(path)
        log.info("the %s begins with %s (sha256 %s)", role, path.name, digest[:12])
    for note in found.notes:
        log.info("%s: %s", role, note)
    return StartSettings(weights=start.weights, head=start.head, sha256=digest)


def initial_networks(
    role: str, start: StartSettings | None, spec: NetworkSpec, seeds: Sequence[int]
) -> Iterator[tuple[int, nn.Module]]:
    """The network as it begins, for each seed: with random weights, or with those that the check has seen.

    Raises:
        InputError: as `check_start`; or the weights have changed since the check.
    """
    if start is None:
        for seed in seeds:
            yield seed, spec.build(seed)
        return
    with _fetched(role, start.weights, spec) as (path, left_out):
        if (digest := sha256_of(path)) != start.sha256:
            problem = f"has changed since the check: its sha256 is {digest[:12]}..., it was {start.sha256[:12]}..."
            raise InputError(f"{role}_weights", start.weights, problem, "Start the run again")
        for seed in seeds:
            yield seed, _read(role, start, spec, path, left_out, seed).model


def published_for(role: str, start: StartConfig, model: str) -> Published | None:
    """What is known of published weights; None: others are asked for, or none.

    Raises:
        InputError: none are published for this network.
    """
    if start.weights != PRETRAINED:
        return None
    from rco.models.pretrained import published

    return published(model, f"{role}_weights")


def _read(
    role: str, start: StartConfig | StartSettings, spec: NetworkSpec, path: Path, left_out: tuple[str, ...], seed: int
) -> ImportedNetwork:
    weights = f"{role}_weights"
    try:
        found = read_network(path, spec, new_head=start.head == "new", left_out=left_out, seed=seed)
    except OtherClassesError as error:
        remedy = f"Set {role}_head = new, which makes the last layer anew, or use weights that were trained on these classes"
        raise InputError(weights, start.weights, error.problem, remedy) from None
    except InputError as error:
        if error.parameter in ("stem", "head"):
            raise error.renamed(f"{role}_{error.parameter}") from None
        if error.parameter == "model":
            raise error.renamed(role) from None
        raise InputError(weights, start.weights, error.problem, error.remedy) from None
    if found.spec != spec:
        problem = f"means another stem at {spec.image_size} pixels than the weights have, which is {found.spec.stem}"
        raise InputError(f"{role}_stem", spec.stem, problem, f"Set {role}_stem = {found.spec.stem}")
    return found


@contextmanager
def _fetched(role: str, address: str, spec: NetworkSpec) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file of the weights, for as long as it is needed; and how names in it begin that are left out."""
    from rco.core.storage.transfer import fetch

    try:
        if published := published_for(role, StartConfig(weights=address), spec.model):
            yield _download(published), published.left_out
            return
        with TemporaryDirectory() as scratch:
            if address.startswith("models:/"):
                found = _registered(address, Path(scratch))
            else:
                found = fetch(address, Path(scratch))
            yield _only(found, address), ()
    except InputError as error:
        if error.parameter in ("uri", "url", "file"):
            raise InputError(f"{role}_weights", address, error.problem, error.remedy) from None
        raise


def _registered(uri: str, folder: Path) -> Path:
    from rco.tracking.context import Context
    from rco.tracking.registry import download

    server = Context.from_environment().tracking_uri
    if not server:
        raise InputError("uri", uri, "is in MLflow, and no server is named", "Set MLFLOW_TRACKING_URI")
    return download(uri, "uri", tracking_uri=server, folder=folder)


def _only(found: Path, address: str) -> Path:
    """The file of weights at an address, which may be a folder with one in it."""
    if not found.is_dir():
        return found
    files = sorted(path for path in found.rglob("*") if path.suffix in _ENDINGS and path.is_file())
    files = [path for path in files if path.suffix == _ENDINGS[0]] or files
    if len(files) != 1:
        names = ", ".join(path.relative_to(found).as_posix() for path in files[-3:])
        holds = f"is a folder with {len(files)} files of weights" if files else "is a folder without weights"
        raise InputError("uri", address, holds, f"Name one of them, such as {names}" if files else "Name a file")
    return files[0]


def _download(published: Published) -> Path:
    """The published file in the cache.

    Raises:
        InputError: it cannot be had.
    """
    from rco.core.download import download, headers

    folder = Path(os.environ.get(VARIABLE, "") or Path.home() / ".cache" / "rco" / "weights")
    path, sha256 = folder / published.file, published.sha256
    if not sha256:
        try:
            sha256 = headers(published.url).get(_HUB_HASH, "").strip('"')
        except OSError as error:
            if not path.is_file():
                remedy = f"Put the file there yourself, as {path}, or name a file that you have"
                raise InputError("url", published.url, f"cannot be asked ({why_unreachable(error)})", remedy) from None
            log.warning("the hub cannot be asked for the hash of %s: it is taken as it lies there", path)
            return path
        if not _SHA256.fullmatch(sha256):
            problem = "has no sha256, by which the file would be known"
            raise InputError("url", published.url, problem, f"Put the file there yourself, as {path}, or name another")
    return download(published.url, path, sha256)
