"""The inner process of a local run: checks the settings, then hands the pipeline to KFP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.local import warm
from pipelines.local.fork_server import Client, RefusedError
from pipelines.local.run import BAD_INPUT, CACHE, FAILED, OUTPUTS, ROUND
from rco.core.errors import InputError, disk_full
from rco.core.home import locked, running
from rco.core.marks import FULL, PREFIX

if TYPE_CHECKING:
    from rco.config.branches import Comparison
    from rco.training.config import ComputeConfig


def execute(request: Mapping[str, Any], client: Client | None) -> None:
    """The inner process: check, then hand the pipeline to KFP.

    Args:
        client: starts tasks warm; None: every task imports what it needs.

    Raises:
        InputError: settings that cannot work; no task has been started.
        RuntimeError: a task failed.
    """
    import logging

    from rco.tasks.process import log, show_progress
    from rco.tracking.context import require_writable
    from rco.training import device, resume

    # KFP announces cache hits on the root logger.
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    show_progress()
    log.info("checking the settings")
    require_writable(os.environ.get("MLFLOW_TRACKING_URI", ""))
    plan = make_plan(READERS[request["pipeline"]](request["parameters"]))
    device.require_device(plan.compute)
    home, folder = Path(request["home"]), Path(request["folder"])
    if gone := resume.sweep(home / "resume"):
        log.info("%d interrupted trainings that no run has gone on with were removed from %s", gone, home / "resume")
    (folder / "started").touch()
    from kfp import local

    _cache_by_content(home)
    if client:
        warm.start_tasks_through(client)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home / OUTPUTS),
        enable_caching=bool(request["cache"]),
        cache_root=str(home / CACHE),
    )
    result = plan.make()(**plan.arguments)
    for place, (output, part) in plan.published.items():
        shutil.copytree(Path(result.outputs[output].path, part), folder / "report" / place)


def _cache_by_content(home: Path) -> None:
    """Let KFP's local cache go by what a task computes (image, source, inputs), as it does on a cluster.

    An entry that is damaged, or whose files were deleted or cut, is none: the task runs again.

    It goes by the component's name as well, and KFP's compiler numbers those through all tasks of a pipeline: with one more
    branch in a comparison, nothing would be found again. It goes by the full paths of inputs, too; here they are relative to
    the home, which may be moved. What is found counts as used now: `rco clean` takes what was not for long.
    """
    from kfp.local import cache

    plain, root = cache.LocalCache, home / OUTPUTS

    class ContentCache(plain):  # type: ignore[misc, valid-type]
        def compute_key(self, component_name: str, *args: Any, **kwargs: Any) -> str:
            key: str = super().compute_key("", *args, **kwargs)
            return key

        def get(self, key: str) -> Any:
            with locked(home, alone=False):  # nothing is removed between the look and the use
                try:
                    found = super().get(key)
                except (ValueError, KeyError, TypeError, AttributeError, OSError):  # of an entry that is damaged
                    found = None
                if found is not None:
                    with contextlib.suppress(OSError):
                        os.utime(self._entry_path(key))
            return found

        # KFP calls these three by the name of the class, which is this one's from now on.
        @staticmethod
        def _serialize_value_for_key(value: Any) -> Any:
            return _relative(plain._serialize_value_for_key(value), root)

        @staticmethod
        def _serialize_artifact(artifact: Any) -> Any:
            sizes = _sizes(Path(artifact.uri)) if artifact.uri else {}
            return {**_relative(plain._serialize_artifact(artifact), root), "sizes": sizes}

        @staticmethod
        def _deserialize_artifact(data: Mapping[str, Any]) -> Any:
            path = root / data["uri"]
            if (sizes := data.get("sizes")) and sizes.items() - _sizes(path).items():
                raise cache._MissingArtifactError(str(path))
            return plain._deserialize_artifact({**data, "uri": str(path)})

    cache.LocalCache = ContentCache


def _sizes(path: Path) -> dict[str, int]:
    """The files of an artifact, relative to it, and their sizes in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files if file.is_file()}


def _relative(described: Any, root: Path) -> Any:
    """What KFP writes of an artifact, with its path relative to where outputs lie; anything else as it is."""
    if isinstance(described, dict) and "__kfp_artifact__" in described and Path(described["uri"]).is_relative_to(root):
        return {**described, "uri": str(Path(described["uri"]).relative_to(root))}
    return described


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request whose settings have been found sound.

    Attributes:
        compute: resolved.
        make: builds the pipeline; not called before the check is over, because it imports KFP.
        arguments: of the pipeline.
        published: place in the report's folder -> output of the pipeline, and the part of it that goes there.
    """

    compute: ComputeConfig
    make: Callable[[], Any]
    arguments: dict[str, Any]
    published: dict[str, tuple[str, str]]


def make_plan(comparison: Comparison) -> Plan:
    """Check the settings of a run or a comparison.

    Raises:
        InputError: they cannot work.
    """
    from rco.config.kinds import COMPILED
    from rco.tasks.students import seed_folder
    from rco.tasks.validate import shape_of, validate

    compute = validate(comparison)

    def make() -> Any:
        from pipelines.pipeline import make_pipeline

        return make_pipeline(shape_of(comparison))

    arguments = {name: value for name, value in comparison.to_parameters().items() if name not in (*COMPILED, "race")}
    published = {".": ("summary", ".")}
    if comparison.is_run:
        published["student"] = ("students", str(seed_folder(Path(), *comparison.seeds)))
    return Plan(compute=compute, make=make, arguments=arguments, published=published)


def _read_run(parameters: Mapping[str, Any]) -> Comparison:
    from rco.config.branches import Comparison
    from rco.config.parameters import RunConfig

    return Comparison.of_run(RunConfig.from_flat(parameters))


def _read_comparison(parameters: Mapping[str, Any]) -> Comparison:
    from rco.config.branches import Comparison

    return Comparison.of(parameters)


READERS: dict[str, Callable[[Mapping[str, Any]], Comparison]] = {
    "run": _read_run,
    "comparison": _read_comparison,
    ROUND: _read_comparison,
}


def _wait_for_task(client: Client | None, number: int) -> None:
    """The signal has reached the task as well, if one is running: it ends by itself, and fails the pipeline."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none that KFP has started
        if not (client and client.busy):
            sys.exit(128 + number)


def main(path: Path) -> int:
    """Run a request; bad input goes to error.txt beside it."""
    try:
        if warm.wanted():
            warm.run(lambda client: _work(path, client))
    except InputError as error:
        return _bad_input(path, error)
    except RefusedError as error:
        print(f"tasks start cold: {error}")
    return _work(path, None)


def _work(path: Path, client: Client | None) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: _wait_for_task(client, number))
    request = json.loads(path.read_text())
    try:
        with running(path.parent):  # this process may outlive the outer one
            execute(request, client)
    except InputError as error:
        return _bad_input(path, error)
    except Exception as error:
        if full := disk_full(error, [path.parent, tempfile.gettempdir()]):
            print(f"{PREFIX}{FULL}{full}")
        elif isinstance(error, RuntimeError):
            print(error)
        else:
            raise
        return FAILED
    return 0


def _bad_input(path: Path, error: InputError) -> int:
    (path.parent / "error.txt").write_text(str(error))
    return BAD_INPUT
