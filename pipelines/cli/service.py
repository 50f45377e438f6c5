"""A Kubeflow Pipelines service, as commands use it: connecting, uploading, watching, and trouble as exit statuses."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click

from rco.core.errors import InputError

#: Exit statuses; bad input is 2.
RUN_FAILED, NO_SERVICE, STILL_RUNNING = 1, 3, 4


@dataclass(frozen=True)
class Target:
    """Which service, and whose part of it; None: as KFP's own client finds it."""

    endpoint: str | None
    namespace: str | None


target_options = (
    click.option(
        "--endpoint",
        envvar=["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"],
        show_envvar=True,
        help="address of KFP, such as http://localhost:8080; without one, the cluster of this pod or of kubectl",
    ),
    click.option(
        "--namespace", envvar="KFP_NAMESPACE", show_envvar=True, help="your profile's, where KFP serves several users"
    ),
)


def connect(target: Target) -> Any:
    """The service; what may not work with it is said on standard error."""
    import kfp

    from pipelines.cluster.service import OLDEST, Service

    _quiet()
    service = Service(target.endpoint, target.namespace)
    major, minor = (int(number) for number in kfp.__version__.split(".")[:2])
    if service.older_than((major, minor)):
        warning = (
            f"KFP there is {service.version}, older than the {kfp.__version__} that compiles: it may refuse what is new to it"
        )
        if service.older_than(OLDEST):
            warning += "; runs fail at their first stage: nested pipelines hand on artifacts from 2.5 on"
        click.echo(f"rco: {warning}", err=True)
    if target.namespace and not service.multi_user:
        click.echo(f"rco: KFP there serves one user; the namespace {target.namespace} is not used", err=True)
    return service


def _quiet() -> None:
    """Keep the libraries' own words off the screen: what goes wrong is told once, in ours."""
    for name in ("urllib3", "google.auth", "kubernetes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # KFP's client logs it for every request in a pod without a token that is meant for it, where none is needed.
    logging.getLogger().addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("Failed to read a token", "Failed to set up default credentials"))


def upload_package(service: Any, package: Any, err: bool = False) -> Any:
    """Upload a package, unless it is there, and print where it is (on standard error, if the output is for scripts)."""
    from pipelines.cluster.submit import upload

    uploaded = upload(service, package)
    where = service.link(f"pipelines/details/{uploaded.pipeline_id}")
    click.echo(f"pipeline   {package.name}   {where}".rstrip(), err=err)
    click.echo(f"version    {package.version}   ({'uploaded' if uploaded.new else 'was there'})", err=err)
    return uploaded


@dataclass(frozen=True)
class WatchOptions:
    """How a run is watched, as the command was told.

    Attributes:
        timeout: how long to wait at most, as text; None: as long as it takes.
        retry_failed: how often KFP is to try a failed run again.
        as_json: the run as JSON at the end; progress goes to standard error.
    """

    timeout: str | None
    retry_failed: int
    as_json: bool


watch_options = (
    click.option("--timeout", metavar="90m|12h|...", help="how long to wait at most; the run goes on  [as long as it takes]"),
    click.option(
        "--retry-failed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        metavar="N",
        help="let KFP try a failed run again so many times: what was finished stays finished",
    ),
    click.option("--json", "as_json", is_flag=True, help="at the end the run as JSON; progress goes to standard error"),
)


def watch(service: Any, run_id: str, options: WatchOptions, planned: Any = None) -> None:
    """Show a run until it has ended, or for so long; if it has not succeeded, this process ends."""
    from pipelines.cli.submission import in_seconds
    from pipelines.cluster.service import ServiceError
    from pipelines.cluster.submit import again
    from pipelines.cluster.watch import StillRunningError, Watcher, figures_of
    from pipelines.display import Watching

    seconds = in_seconds(options.timeout)
    try:
        with Watching(on_error=options.as_json) as watching:
            watcher = Watcher(service, run_id, watching.show, watching.draw, planned, figures_of(run_id))
            run = _to_its_end(watcher, options.retry_failed, seconds)
    except KeyboardInterrupt:
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(130)
    except (StillRunningError, ServiceError, InputError) as error:
        click.echo(f"rco: {error}", err=True)
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(STILL_RUNNING if isinstance(error, StillRunningError) else NO_SERVICE)
    _conclude(service, run, watcher, options.as_json)


def end(service: Any, run_id: str, options: WatchOptions) -> None:
    """End a run, wait until it has ended, and end what MLflow has open of it."""
    from pipelines.cluster.watch import RUN_ENDED, state_of, terminate

    before = terminate(service, run_id)
    if state_of(before) in RUN_ENDED:
        click.echo(f"the run had ended as {state_of(before)}", err=options.as_json)
    watch(service, run_id, replace(options, retry_failed=0))


def _to_its_end(watcher: Any, retries: int, seconds: float | None) -> Any:
    """Watch a run until it has ended for good."""
    from pipelines.cluster.service import ServiceError
    from pipelines.cluster.watch import failures, retry, state_of, was_terminated

    begun = time.monotonic()
    run = watcher.wait(timeout=seconds)
    for number in range(1, retries + 1):
        if state_of(run) != "FAILED" or was_terminated(run):
            break
        failed = failures(watcher.service, run, watcher.planned or ())
        if failed and all(failure.final for failure in failed):
            watcher.show("it is not tried again: its input cannot work")
            break
        for failure in failed:
            if watcher.told.pop(failure.label, "") != failure.words:
                watcher.show(f"{failure.label}: {failure.words}")
        try:
            retry(watcher.service, run)
        except ServiceError as error:
            watcher.show(f"it cannot be tried again: {error}")
            break
        watcher.show(f"the run failed and is tried again ({number} of {retries}); what was finished stays finished")
        left = None if seconds is None else max(0.1, seconds - (time.monotonic() - begun))
        run = watcher.wait(timeout=left, after=run.finished_at)
    return run


def _conclude(service: Any, run: Any, watcher: Any, as_json: bool) -> None:
    """Say how a run ended; if it has not succeeded, this process ends."""
    from pipelines.cluster.watch import RUN_SUCCEEDED, close_in_mlflow, explain, state_of
    from pipelines.cluster.watch import as_json as in_json

    state, planned = state_of(run), watcher.planned or ()
    if told := close_in_mlflow(run):
        click.echo(told, err=True)
    if as_json:
        click.echo(in_json(service, run, planned))
    if state == RUN_SUCCEEDED:
        click.echo("the run succeeded", err=as_json)
        return
    click.echo(f"rco: the run ended as {state}", err=True)
    for line in () if as_json else explain(service, run, planned, watcher.told):
        click.echo(f"  {service.clean(line)}", err=True)
    sys.exit(RUN_FAILED)


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Trouble with a cluster is one paragraph and an exit status."""
    from pipelines.cluster.service import ServiceError
    from pipelines.cluster.watch import RunGoneError

    try:
        yield
    except ServiceError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(2 if error.status in (400, 409, 413, 422) else NO_SERVICE)
    except RunGoneError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(RUN_FAILED)
