"""Warm tasks: the tasks of a local run forked from a process that has imported PyTorch and MLflow, once for all of them.

A task of a small run spends most of its time on imports. `pipelines.local.fork_server` does the forking; here is
what is imported, and how KFP's subprocess runner comes to ask for forks.

Variables of the environment:
    RCO_WARM   0: start every task cold
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from pipelines.local.fork_server import Client, RefusedError, Request, leave, possible, serve
from rco.core.errors import InputError

SWITCH = "RCO_WARM"
_EXECUTOR = "kfp.dsl.executor_main"
_SCRIPT = """program_path=$(mktemp -d)
printf "%s" "$0" > "$program_path/ephemeral_component.py"
_KFP_RUNTIME=true {python} -m {executor} --component_module_path "$program_path/ephemeral_component.py" "$@"
"""
#: Imported by the parent: what the worker needs too; what every task needs; and what some do, in the order in which they
#: come. A user's own modules are never among them: every task reads them as they are then.
FIRST = ("torch",)
ALWAYS = (
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "kfp.dsl.executor",
    "rco.tasks.report",
    "rco.tasks.distill",
)
SOMETIMES = (
    "sklearn.datasets",
    "torchvision",
    "rco.api",
    "safetensors.torch",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "scipy.stats",
    "mlflow.pytorch",
    "torch.export._trace",
)


def wanted() -> bool:
    """Whether tasks are to start warm: where that is possible, unless RCO_WARM=0.

    Raises:
        InputError: RCO_WARM is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "") or "1"
    if switch not in ("0", "1"):
        raise InputError(SWITCH, switch, "must be 0 or 1", "0 starts every task of a local run cold")
    return switch == "1" and possible()


def run(work: Callable[[Client], int]) -> NoReturn:
    """Do `work` in a process whose tasks start warm, and end with its exit status.

    Raises:
        RefusedError: tasks must start cold; nothing has been done.
    """
    for step in _imports(FIRST):
        step()
    leave(serve(work, _run_component, before=[*_imports(ALWAYS), _read_own_code], meanwhile=_imports(SOMETIMES)))


def _read_own_code() -> None:
    """Have the digest of the code that was imported, once for all tasks."""
    from rco.training.identity import software

    software()


def _imports(names: Sequence[str]) -> list[Callable[[], None]]:
    """Functions that import a module each, without starting a thread."""
    return [partial(_import, name) for name in names]


def _import(name: str) -> None:
    # PyArrow's allocator would start a thread; KFP is imported as its executor imports it. What cannot be imported is left to
    # the task that needs it.
    variables = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "_KFP_RUNTIME": "true"}
    with _variables(variables), contextlib.suppress(Exception):
        if name == "mlflow":
            from rco.tracking.context import import_mlflow

            import_mlflow()
        else:
            importlib.import_module(name)
            if dynamo := sys.modules.get("torch._dynamo.utils"):  # takes 50 ms at the end of every task to say nothing
                atexit.unregister(dynamo.dump_compile_times)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set, for a while."""
    before = dict(os.environ)
    os.environ.update({**values, **before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_component(request: Request) -> None:
    """Be KFP's executor of a lightweight component, as its command line would have it."""
    with TemporaryDirectory() as folder:
        program = Path(folder) / "ephemeral_component.py"
        program.write_text(request["source"])
        sys.argv = ["", "--component_module_path", str(program), *request["arguments"]]
        runpy.run_module(_EXECUTOR, run_name="__main__", alter_sys=True)


def start_tasks_through(client: Client) -> None:
    """Have KFP's subprocess runner ask `client` for its processes. What is not the command that KFP 2.17 makes for a
    lightweight component, or has variables of its own (libraries may read them when they are imported), starts cold."""
    from kfp.local import subprocess_task_handler as handler

    cold = handler.run_local_subprocess
    shell = ["sh", "-ec", _SCRIPT.format(python=sys.executable, executor=_EXECUTOR).split()]

    def run_local_subprocess(full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        if env_vars or len(full_command) < 4 or [*full_command[:2], full_command[2].split()] != shell:
            return int(cold(full_command, env_vars))
        request = {
            "source": full_command[3],
            "arguments": list(full_command[4:]),
            "environment": {**os.environ, "_KFP_RUNTIME": "true"},
        }
        try:
            status = client.run(request, show=lambda line: print(line, end=""))
        except RefusedError as error:
            print(f"this task starts cold: {error}")
            return int(cold(full_command, env_vars))
        print("\n")
        return status

    handler.run_local_subprocess = run_local_subprocess
