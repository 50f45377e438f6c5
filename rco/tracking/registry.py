"""The registry: a student as a model to serve, the champion among its versions, and the way back to a module."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from rco.core.errors import InputError
from rco.tracking.context import Context, first_line
from rco.tracking.delivery import EXPORT
from rco.tracking.model_run import ModelRun
from rco.tracking.probe import has_logged_models
from rco.tracking.record import Record

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from torch import nn

    from rco.models.spec import NetworkSpec

CHAMPION = "champion"


def registered_version(context: Context, name: str, sha256: str) -> str | None:
    """The newest version of a registered model with exactly these weights; None: it has no such version."""
    from mlflow.exceptions import MlflowException

    client = context.client()
    try:
        versions = client.search_model_versions(f"name = '{name}' AND tags.`rco.sha256` = '{sha256}'")
    except MlflowException:
        return None
    return str(max(int(v.version) for v in versions)) if versions else None


def register(
    context: Context,
    name: str,
    model: nn.Module,
    record: Record,
    *,
    example: Any,
    expected: Any,
    weights: Path,
    sha256: str,
    params: Mapping[str, Any],
    beside: Sequence[Path] = (),
    code: Code | None = None,
) -> str:
    """Register a student as a model to serve; returns the version.

    The model takes pixels in 0..1 and normalises them itself. It is stored as an exported graph (pt2: no pickle), with
    signature and input example, and beside it the plain weights for `load`. One that cannot be traced is stored as its
    factory's code and its weights (`rco.tracking.served`): no pickle either.

    Args:
        record: of the student; the version belongs to its run.
        example: (B, C, H, W) float32, pixels in 0..1; B of 2 or more, so that the exporter leaves the batch size open.
        expected: (B, K) float32, the logits for the example.
        weights: the safetensors file.
        beside: other files to keep with it.
        code: of a network that cannot be traced.
    """
    import mlflow

    client = context.client()
    run = ModelRun.open(context, client, record)
    flavour, what = _traced(model, weights, beside) if code is None else _of_code(code, weights, beside)
    what |= {"signature": _signature(example, expected), "input_example": example}
    model_id: str | None = None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*type hints")  # MLflow would have some in served.py, and takes none for it
        if not has_logged_models(client, run.experiment_id):
            source = _save(run, flavour, what)
        else:
            source, model_id = _log(run, flavour, what, params, sha256)
    tags = {"rco.sha256": sha256, **({"rco.not_traced": code.reason} if code else {})}
    with contextlib.suppress(mlflow.exceptions.MlflowException):
        client.create_registered_model(name)
    version = client.create_model_version(name, source=source, run_id=run.run_id, model_id=model_id, tags=tags)
    return str(version.version)


def _log(run: ModelRun, flavour: Any, what: Mapping[str, Any], params: Mapping[str, Any], sha256: str) -> tuple[str, str]:
    """Store a model as a logged model of its run; returns its address and id."""
    import mlflow

    with mlflow.start_run(run_id=run.run_id):  # also ends the run
        info = flavour.log_model(
            name="student",
            params={key: str(value) for key, value in params.items()},
            tags={"rco.sha256": sha256},
            model_type="student",
            **what,
        )
    return info.model_uri, info.model_id


def _save(run: ModelRun, flavour: Any, what: Mapping[str, Any]) -> str:
    """Store a model among the artifacts of its run, for a server without logged models; returns its address."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "student"
        flavour.save_model(path=str(folder), **what)
        run.client.log_artifacts(run.run_id, str(folder), "student")
    run.end()
    return f"{run.client.get_run(run.run_id).info.artifact_uri}/student"


@dataclass(frozen=True, kw_only=True)
class Code:
    """What builds a network that cannot be traced.

    Attributes:
        factory: `package.module:function`.
        arguments: its keyword arguments.
        paths, requirements: what it takes to import it (`rco.core.code.Importable`).
        mean, std: of each channel of pixels in 0..1.
        reason: why it cannot be traced.
    """

    factory: str
    arguments: Mapping[str, Any]
    paths: Sequence[Path]
    requirements: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    reason: str


def _traced(model: nn.Module, weights: Path, beside: Sequence[Path]) -> tuple[Any, dict[str, Any]]:
    """A flavour of MLflow, and what its `log_model` is given: the exported graph."""
    import mlflow

    return mlflow.pytorch, {
        "pytorch_model": model,
        "serialization_format": "pt2",
        "extra_files": [str(weights), *map(str, beside)],
        "pip_requirements": _requirements(),
    }


def _of_code(code: Code, weights: Path, beside: Sequence[Path]) -> tuple[Any, dict[str, Any]]:
    """As `_traced`: code and weights."""
    import mlflow

    return mlflow.pyfunc, {
        "python_model": str(Path(__file__).with_name("served.py")),
        "model_config": {
            "factory": code.factory,
            "arguments": dict(code.arguments),
            "mean": list(code.mean),
            "std": list(code.std),
        },
        "artifacts": {"weights": str(weights), **{path.stem: str(path) for path in beside}},
        "code_paths": [str(path) for path in code.paths],
        "pip_requirements": [*_requirements(), f"safetensors=={version('safetensors')}", *code.requirements],
    }


def _requirements() -> list[str]:
    import numpy as np
    import torch
    import torchvision

    return [
        f"torch=={torch.__version__.split('+')[0]}",
        f"torchvision=={torchvision.__version__.split('+')[0]}",
        f"numpy=={np.__version__}",
    ]


def _signature(example: Any, expected: Any) -> Any:
    import numpy as np
    from mlflow.models import infer_signature
    from mlflow.types import Schema, TensorSpec

    signature = infer_signature(example, expected)
    # An open batch size: infer_signature takes that of the example.
    for schema_name in ("inputs", "outputs"):
        schema = getattr(signature, schema_name)
        spec = schema.inputs[0]
        setattr(signature, schema_name, Schema([TensorSpec(np.dtype("float32"), (-1, *spec.shape[1:]), spec.name)]))
    return signature


def link_files(context: Context, name: str, version: str, record: Record, files: Mapping[str, str]) -> None:
    """Tell a version where the student's files of other formats are: tags `rco.export.FORMAT` with addresses for
    `mlflow.artifacts.download_artifacts`. The report brings the files there (`rco.tracking.delivery`). Safe to repeat.

    Args:
        record: of the student, in whose run of this pipeline run they are.
        files: format -> name.
    """
    client = context.client()
    run = ModelRun.open(context, client, record)
    run.end()
    for kind, file in files.items():
        client.set_model_version_tag(name, version, f"rco.export.{kind}", f"runs:/{run.run_id}/{EXPORT}/{file}")


class Promotion(NamedTuple):
    """Whether a version is the champion, and the reason."""

    champion: bool
    reason: str


def promote(context: Context, name: str, version: str, *, accuracy: float, data_digest: str, margin: float = 0.0) -> Promotion:
    """Move the alias `champion` to this version if its accuracy is more than `margin` above that of the present champion.

    Accuracies compare only on the same data: a champion that was measured on other data keeps the alias until a person moves
    it. Decision and reason become tags of the version (rco.champion, rco.champion_reason). Safe to repeat.

    Args:
        accuracy: on the test part, 0 to 1.
        data_digest: of the prepared data set.
        margin: 0 to 1.
    """
    from mlflow.exceptions import MlflowException

    client = context.client()
    client.set_model_version_tag(name, version, "rco.test_accuracy", repr(accuracy))
    client.set_model_version_tag(name, version, "rco.data_digest", data_digest)
    try:
        holder = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        holder = None
    if holder is not None and str(holder.version) == version:
        return Promotion(True, holder.tags.get("rco.champion_reason", "it was the champion already"))
    promotion = _decide(holder, accuracy, data_digest, margin)
    client.set_model_version_tag(name, version, "rco.champion", str(promotion.champion).lower())
    client.set_model_version_tag(name, version, "rco.champion_reason", promotion.reason)
    if promotion.champion:  # last: a decision that was cut short is made again
        client.set_registered_model_alias(name, CHAMPION, version)
    return promotion


def _decide(holder: ModelVersion | None, accuracy: float, data_digest: str, margin: float) -> Promotion:
    if holder is None:
        return Promotion(True, "there was no champion")
    if "rco.test_accuracy" not in holder.tags:
        return Promotion(False, f"the champion, version {holder.version}, does not say how good it is")
    if holder.tags.get("rco.data_digest") != data_digest:
        return Promotion(False, f"the champion, version {holder.version}, was measured on other data")
    best = float(holder.tags["rco.test_accuracy"])
    better = accuracy - best > margin
    compared = f"{100 * accuracy:.2f} % against {100 * best:.2f} % of version {holder.version}"
    wanted = f" by more than {100 * margin:g} points" if margin else ""
    return Promotion(better, f"{compared}: {'better' if better else 'not better'}{wanted}")


def load(uri: str, *, model: NetworkSpec | None = None, tracking_uri: str | None = None) -> nn.Module:
    """The module behind an anchor ("models:/m-...") or a registered student ("models:/NAME/VERSION"), in evaluation mode.

    Students come back bare: they take normalised images. (`mlflow.pyfunc.load_model` gives the one that normalises.)

    Args:
        uri: as MLflow writes it.
        model: the network's spec; needed if a user's own factory or another package builds it.
        tracking_uri: default: MLFLOW_TRACKING_URI, else the local runs of the current directory.

    Raises:
        InputError: MLflow has no such model, or it was not registered by this project.
    """
    from rco.models.spec import load_network

    default = "sqlite:///.rco/mlflow.db" if Path(".rco/mlflow.db").is_file() else ""
    folder = download(uri, "uri", tracking_uri=tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default)
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        raise InputError(
            "uri", uri, f"holds {len(files)} safetensors files", "Name an anchor, or a student that this project registered"
        )
    return load_network(files[0], spec=model)


def download(uri: str, parameter: str, *, tracking_uri: str, folder: Path | None = None) -> Path:
    """The files of a model in MLflow, in a folder.

    Args:
        parameter: the name under which the user gave the URI.
        folder: where to; default: MLflow decides.

    Raises:
        InputError: MLflow has no such model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    Context(tracking_uri=tracking_uri, pipeline_run="").client()
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder) if folder else None))
    except MlflowException as error:
        problem = f"cannot be loaded ({first_line(error)})"
        remedy = "Copy a model's URI from the MLflow UI, or set MLFLOW_TRACKING_URI"
        raise InputError(parameter, uri, problem, remedy) from None
