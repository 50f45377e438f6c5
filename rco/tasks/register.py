"""The task that puts the student into the model registry."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.config.filing import Filing
from rco.core.code import importable
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.tensors import load_arrays, load_state
from rco.data.inputs import FILE as INPUTS
from rco.evaluation.measured import read_evaluation
from rco.models.families import packages
from rco.models.spec import NetworkSpec, described, load_network
from rco.tasks.exported import exported_files
from rco.tasks.process import log, read_settings, task
from rco.tasks.students import EMA, STUDENT, seed_folder
from rco.tracking.context import Context, forgiving
from rco.tracking.record import Record
from rco.tracking.registry import Code, link_files, promote, register, registered_version


@task
def register_student(settings: Mapping[str, Any], *, students: Path, evaluation: Path) -> dict[str, Any]:
    """Put the student of a run into the MLflow model registry, unless these very weights are there already, and make it the
    champion if it is better than the one that is.

    Args:
        students: of the last step.
        evaluation: of `rco.tasks.evaluate.evaluate_students`.

    Returns:
        name, version, champion (whether it is now) and reason; or nothing if no registry is used.
    """
    s = read_settings(Filing, settings)
    (seed,) = s.seeds
    with forgiving("The registration of the student"):
        return register_from(s, student=seed_folder(students, seed), evaluation=seed_folder(evaluation, seed))
    return {}


def register_from(s: Filing, *, student: Path, evaluation: Path) -> dict[str, Any]:
    """As `register_student`, from the folders of the one student. Raises what MLflow's client raises."""
    context = Context.from_environment()
    if not s.registered_model or not context.active:
        log.info("the student is not registered: %s", "no name is given" if context.active else "nothing is tracked")
        return {}
    of_ema = s.registered_weights == "ema"
    weights = student / (EMA if of_ema else STUDENT)
    digest = sha256_of(weights)
    measured = read_evaluation(evaluation, in_depth=True)
    version = registered_version(context, s.registered_model, digest)
    if version is None:
        log.info("exporting the student")
        version = _register(s, context, weights, digest, evaluation)
        log.info("registered as %s version %s", s.registered_model, version)
    else:
        log.info("these weights are %s version %s already", s.registered_model, version)
    promotion = promote(
        context,
        s.registered_model,
        version,
        accuracy=measured["student_ema" if of_ema else "student"]["accuracy"],
        data_digest=Record.read(student).data["digest"],
        margin=s.champion_margin,
    )
    if files := exported_files(evaluation, measured):
        names = {name: path.name for name, path in files.items()}
        link_files(context, s.registered_model, version, Record.read(student), names)
    log.info("version %s is %s: %s", version, "the champion" if promotion.champion else "not the champion", promotion.reason)
    return {"name": s.registered_model, "version": version, **promotion._asdict()}


def _register(s: Filing, context: Context, weights: Path, digest: str, evaluation: Path) -> str:
    import torch

    from rco.models.normalized import Normalized, untraceable

    arrays, _ = load_arrays(evaluation / "example.safetensors", "pixels", "logits", "mean", "std")
    _, metadata = load_state(weights)
    spec = described(metadata, weights)
    if spec.model != s.parameters["student"]:
        raise InputError("student", s.parameters["student"], f"is not the {spec.model} that was trained", "Run evaluate again")
    network, mean, std = load_network(weights, spec=spec), arrays["mean"], arrays["std"]
    model = Normalized(network, torch.from_numpy(mean), torch.from_numpy(std)).eval()
    code = None
    if spec.is_foreign and (reason := untraceable(model, arrays["pixels"])):
        log.info("torch.export cannot trace the student (%s): it is registered with its factory's code", reason)
        code = _code(spec, mean, std, reason)
    with TemporaryDirectory() as scratch:
        named = Path(shutil.copyfile(weights, Path(scratch) / STUDENT))  # whichever weights they are
        return register(
            context,
            s.registered_model,
            model,
            Record.read(weights.parent),
            example=arrays["pixels"],
            expected=arrays["logits"],
            weights=named,
            sha256=digest,
            params={"model": spec.model, "image_size": spec.image_size, "num_classes": spec.num_classes},
            beside=[path for path in (weights.with_name(INPUTS),) if path.is_file()],  # in an outbox of 0.1 it is not
            code=code,
        )


def _code(spec: NetworkSpec, mean: NDArray[np.float32], std: NDArray[np.float32], reason: str) -> Code:
    from rco.models.families import factories
    from rco.models.families.layers import Dimensions

    path = packages.factory_path(spec.model)
    dimensions = Dimensions(spec.in_channels, spec.num_classes, spec.image_size, spec.embedding_dim)
    needed = importable(path.partition(":")[0])
    return Code(
        factory=path,
        arguments=factories.arguments_of(factories.find_factory(spec.model, "student", path), dimensions),
        paths=needed.paths,
        requirements=needed.requirements,
        mean=mean.ravel().tolist(),
        std=std.ravel().tolist(),
        reason=reason,
    )
