"""The task that makes the initial students."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.data.inputs import Inputs
from rco.data.referred import open_dataset
from rco.evaluation.statistics import require_same_data
from rco.models.spec import NetworkSpec
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import InitSettings
from rco.tasks.students import save_student, seed_folder
from rco.tasks.weights import initial_networks


@task
def init_students(settings: Mapping[str, Any], *, dataset: Path, students: Path) -> None:
    """Make the initial student of every seed, a function of that seed and of the weights that it begins with.

    Args:
        students: receives a folder a seed: weights, and the answers on the probe samples.

    Raises:
        InputError: the route that the settings speak of was made on other data; or as `initial_networks`.
    """
    students.mkdir(parents=True, exist_ok=True)
    s = read_settings(InitSettings, settings)
    from rco.training import distillation
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = open_dataset(dataset)
    if s.route_data and s.route_data != data.manifest.digest:
        require_same_data({"the prepared data": data.manifest.digest, "the route": s.route_data})
    spec = NetworkSpec.of(s.student, data.manifest)
    for seed, model in initial_networks("student", s.start, spec, s.seeds):
        logits = distillation.probe_logits(model.to(s.compute.device), data, s.compute)
        folder = seed_folder(students, seed)
        save_student(folder, model, spec, logits)
        Inputs.of(data.manifest).write(folder)
        log.info("initial student %s, seed %d", spec.model, seed)
