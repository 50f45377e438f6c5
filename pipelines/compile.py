"""Write the pipelines as the YAML that `kfp pipeline create` takes."""

from collections.abc import Sequence
from pathlib import Path

from kfp import compiler

from pipelines.comparison import DEFAULT_SLOTS, make_comparison
from pipelines.rco import DEFAULT_STAGES, make_pipeline


def compile_rco(path: Path, max_stages: int = DEFAULT_STAGES) -> Path:
    """Compile the pipeline for a cluster; returns the path written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(make_pipeline(max_stages), str(path))
    return path


def compile_comparison(path: Path, slots: Sequence[int] = DEFAULT_SLOTS) -> Path:
    """Compile the comparison for a cluster; returns the path written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(make_comparison(slots), str(path))
    return path
