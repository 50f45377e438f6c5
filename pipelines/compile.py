"""Write the pipelines as the YAML that `kfp pipeline create` takes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from kfp import compiler

from components.image import IMAGE, ROOT, content_hash
from pipelines.cluster.merge import merge_components
from pipelines.cluster.placement import Cluster
from pipelines.pipeline import make_pipeline
from rco.config.shape import Shape
from rco.core.errors import InputError

_BUILD = "Run make build-images (and make push-images REGISTRY=...), or name an image with RCO_IMAGE"


def compile_to(path: Path, shape: Shape, cluster: Cluster | None = None) -> Path:
    """Compile the pipeline of a shape for a cluster (default: `Cluster()`); returns the path written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(make_pipeline(shape, cluster=cluster or Cluster()), str(path))
    merge_components(path)
    return path


def image_to_run(root: Path = ROOT, warn: Callable[[str], None] = lambda line: None) -> str:
    """The image that a cluster is to run.

    RCO_IMAGE, if it is set; else the one that was built (build/image.json), by digest if it has been pushed; else, with a
    warning, the local name, which only a cluster that is given this image by hand can find.

    Raises:
        InputError: an image that was built from other code than this, a file that says nothing of an image, or a name that
            is none.
    """
    named = os.environ.get("RCO_IMAGE", "")
    if named:
        if any(c.isspace() for c in named) or "://" in named:
            raise InputError(
                "RCO_IMAGE", named, "is not the name of an image", "Write registry/name:tag or registry/name@sha256:..."
            )
        return named
    built = root / "build" / "image.json"
    if not built.is_file():
        warn(f"no image has been built: the pipelines name {IMAGE}, which no registry has. {_BUILD}")
        return IMAGE
    try:
        about = json.loads(built.read_text())
        reference, content = about["reference"], about["content"]
    except (ValueError, KeyError, TypeError):
        raise InputError("image", str(built), "does not describe an image", _BUILD) from None
    if content != content_hash(root):
        raise InputError("image", reference, "was built from other code or dependencies than are here now", _BUILD)
    if not isinstance(reference, str) or not reference:
        raise InputError("image", reference, "is not the name of an image", _BUILD)
    if "@" not in reference:
        warn(f"{reference} has not been pushed: only a cluster that is given it by hand can run it")
    return reference
