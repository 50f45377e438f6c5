"""The image that every component runs in."""

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SOURCES = ("rco/**/*.py", "components/*.py", "requirements.lock", "pyproject.toml")


def content_hash(root: Path = ROOT) -> str:
    """Hex digest (12 characters) of everything that decides what a task computes: code and locked dependencies."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


#: RCO_IMAGE names a pushed image (best by digest); the default is a local name that changes with the code. "python" in it
#: tells KFP's subprocess runner that it is a Python image.
IMAGE = os.environ.get("RCO_IMAGE") or f"rco-python:{content_hash()}"
