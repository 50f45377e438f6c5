"""`python -m rco.tasks.worker FOLDER`: one of the processes of a task, as `rco.tasks.launch` starts them."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rco.core.documents import read_json, write_json
from rco.core.errors import DivergenceError, disk_full
from rco.core.settings import from_dict, jsonable
from rco.tasks.launch import BODIES, CALL, ENDED, LOST, PROGRESS, REASONS, ending_of
from rco.tasks.process import log, show_progress, typed_arguments
from rco.tracking.context import RESTARTED
from rco.training import resume_points
from rco.training.config import ComputeConfig

_PR_SET_PDEATHSIG = 1
#: Seconds in which a worker that has lost another one leaves it to that one to end first: the launcher names who has ended, and
#: a process that fails closes its connections before it is gone.
_PATIENCE = 5.0


def main(folder: Path) -> int:
    """Do what the launcher has written into the folder; returns the exit status."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    call = read_json(folder / CALL)
    _end_with(call["launcher"])
    if rank:
        _be_silent()
    else:
        show_progress()
        _tell_of_restarts(folder)
    os.environ[resume_points.PROGRESS] = str(folder / PROGRESS)
    import_module(call["module"])
    function, compute = BODIES[call["task"]], from_dict(ComputeConfig, call["compute"])
    arguments = typed_arguments(function, call["arguments"])
    ended = folder / ENDED.format(rank)
    try:
        result = function(**arguments) if size == 1 else _together(function, arguments, compute)
    except DivergenceError as error:
        if rank:  # worker 0 says it, once it has kept what is worth keeping
            return 0
        write_json(ended, {"kind": "diverged", "message": str(error)})
        return 1
    except Exception as error:
        if _is_lost(error):
            log.warning("%s", " ".join(str(error).split()))
            time.sleep(_PATIENCE)
            return LOST
        error = disk_full(error, [value for value in arguments.values() if isinstance(value, Path)]) or error
        if not (words := ending_of(error)):
            raise
        write_json(ended, words)
        return 1
    if not rank:
        write_json(ended, {"kind": "done", "result": jsonable(result)})
    return 0


def _together(function: Any, arguments: Mapping[str, Any], compute: ComputeConfig) -> Any:
    from rco.training.distributed import joined_group, lost

    with joined_group(compute):
        try:
            return function(**arguments)
        except RuntimeError as error:
            if type(error) is RuntimeError and ("gloo" in str(error) or "NCCL" in str(error)):
                raise lost(error) from error  # in the middle of DDP's own work
            raise


def _is_lost(error: Exception) -> bool:
    distributed = sys.modules.get("rco.training.distributed")
    return distributed is not None and isinstance(error, (distributed.WorkerLostError, distributed.dist.DistError))


def _end_with(launcher: int) -> None:
    """Be asked to end if the launcher, the process of this number, is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:
            sys.exit(LOST)


def _be_silent() -> None:
    """Leave it to worker 0 to speak and to track."""
    log.addHandler(logging.NullHandler())
    log.propagate = False
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)


def _tell_of_restarts(folder: Path) -> None:
    """Have MLflow's run told why this process is not the first."""
    if (folder / REASONS).is_file():
        os.environ[RESTARTED] = "; ".join(read_json(folder / REASONS))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
