"""`precision = auto` on a CPU: bf16 where a trial finds it faster, for these networks on this processor.

What was found is kept with the results (`rco.training.results`), and found there: a machine that is busier the next time does
not compute otherwise, and train everything anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rco.config.branches import Comparison
from rco.core.documents import read_as, write_json
from rco.data.sources.kinds import check_source
from rco.models.spec import NetworkSpec
from rco.tasks.process import log
from rco.tasks.validate import existing_route, sizes_of, spec_of, student_spec
from rco.training import precision
from rco.training.config import ComputeConfig
from rco.training.device import hardware
from rco.training.precision import Trial
from rco.training.results import Result, Training

_FILE = "trial.json"


def settle(comparison: Comparison, compute: ComputeConfig) -> ComputeConfig:
    """Decide `precision = auto` on a CPU; anything else stays as it is.

    Args:
        compute: as `rco.training.device.resolve` left it: in fp32, on a CPU.
    """
    auto = comparison.reference.compute.precision == "auto"
    if not auto or compute.device != "cpu" or not precision.cpu_computes_bf16():
        return compute
    student, teacher = _networks(comparison)
    batch_size = comparison.reference.student_train.batch_size
    try:
        trial = _trial(student, teacher, batch_size, hardware(compute))
    except Exception as error:  # of a network that cannot be trained in bf16, or at all, whosever it is
        log.warning("computing in fp32: the trial of bf16 failed (%s: %s)", type(error).__name__, error)
        return compute
    words = "a trial step in bf16 is %.2f times as fast as in fp32 (%.1f ms, %.1f ms): computing in %s"
    log.info(words, trial.ratio, 1000 * trial.bf16, 1000 * trial.fp32, trial.precision)
    return replace(compute, precision=trial.precision)


def _networks(comparison: Comparison) -> tuple[NetworkSpec, NetworkSpec]:
    """Student and teacher."""
    config = comparison.reference
    info, route = check_source(config.data), existing_route(config)
    teacher = route.network if route else spec_of(config.teacher, info, sizes_of(config, info, None).teacher)
    return student_spec(config, info), teacher


def _trial(student: NetworkSpec, teacher: NetworkSpec, batch_size: int, processor: str) -> Trial:
    """The trial that was made before, or a new one."""
    identity = {
        **{"student": student.written, "teacher": teacher.written},
        **{"batch_size": batch_size, "hardware": processor},
    }
    result = Result("trial", identity, [_FILE], label="fp32 or bf16")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if result.find(folder / "found", lambda found, _: read_as(Trial, found / _FILE, "Delete it")) is not None:
            return read_as(Trial, folder / "found" / _FILE, "Delete it")
        trial = precision.try_precisions(student, teacher, batch_size)
        write_json(folder / _FILE, trial)
        result.store(folder, Training(pipeline_run="", mlflow_run="", rows=()))
    return trial
