"""What code computes: a digest of the package that it is in, as a part of cache keys."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

#: Packages of this project, which may lie beside a user's modules.
_OURS = ("rco", "components", "pipelines")


def package_digest(module: str) -> str:
    """Hex sha256 of all Python files of a module's package, or of its folder if it is a module on its own.

    What the module imports from there counts too, what it imports from elsewhere does not. Empty: there is no such package.

    Args:
        module: name of a module, such as "mynets.resnet".
    """
    spec = find_spec(module.partition(".")[0])
    if spec is None:
        return ""
    if spec.submodule_search_locations is not None:
        folders, pattern = [Path(folder) for folder in spec.submodule_search_locations], "**/*.py"
    else:
        folders, pattern = [Path(spec.origin or ".").parent], "*.py"
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Importable:
    """What another machine needs to import a module.

    Attributes:
        paths: files and folders to copy into a folder on its path.
        requirements: packages to install there, as pip writes them.
    """

    paths: tuple[Path, ...] = ()
    requirements: tuple[str, ...] = ()


def importable(module: str) -> Importable:
    """What a module that is imported here needs elsewhere: its package if that is installed, else the code itself, with the
    other modules of its folder that are in use here.

    Args:
        module: name of a module, such as "mynets.resnet".
    """
    top = module.partition(".")[0]
    spec = find_spec(top)
    if spec is None:
        return Importable()
    is_package = bool(spec.submodule_search_locations)
    place = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "."))
    base = place.parent.resolve()
    if base in {Path(get_path(name)).resolve() for name in ("purelib", "platlib")}:
        return Importable(requirements=tuple(f"{name}=={version(name)}" for name in packages_distributions().get(top, ())))
    found = {base / (top if is_package else place.name)}
    for name, other in list(sys.modules.items()):
        path = Path(getattr(other, "__file__", None) or "/").resolve()
        if path.is_relative_to(base) and name.partition(".")[0] not in _OURS:
            first = path.relative_to(base).parts[0]
            if first.removesuffix(".py") == name.partition(".")[0]:
                found.add(base / first)
    return Importable(tuple(sorted(found)))
