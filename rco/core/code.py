"""What code computes: a digest of the package that it is in, as a part of cache keys."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path


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
