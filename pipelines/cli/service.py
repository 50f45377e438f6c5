"""A Kubeflow Pipelines service, as commands use it: connecting, uploading, watching, and trouble as exit statuses."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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

    from pipelines.cluster.service import Service

    _quiet()
    service = Service(target.endpoint, target.namespace)
    major, minor = (int(number) for number in kfp.__version__.split(".")[:2])
    if service.older_than((major, minor)):
        warning = (
            f"KFP there is {service.version}, older than the {kfp.__version__} that compiles: it may refuse what is new to it"
        )
        click.echo(f"rco: {warning}", err=True)
    if target.namespace and not service.multi_user:
        click.echo(f"rco: KFP there serves one user; the namespace {target.namespace} is not used", err=True)
    return service


def _quiet() -> None:
    """Keep the libraries' own words off the screen: what goes wrong is told once, in ours."""
    for name in ("urllib3", "google.auth"):
        logging.getLogger(name).setLevel(logging.ERROR)


def upload_package(service: Any, package: Any) -> Any:
    """Upload a package, unless it is there, and print where it is."""
    from pipelines.cluster.submit import upload

    uploaded = upload(service, package)
    click.echo(f"pipeline   {package.name}   {service.link(f'pipelines/details/{uploaded.pipeline_id}')}")
    click.echo(f"version    {package.version}   ({'uploaded' if uploaded.new else 'was there'})")
    return uploaded


def watch(service: Any, run_id: str, seconds: float | None) -> None:
    """Show a run until it has ended, or for so many seconds; if it has not succeeded, this process ends."""
    from pipelines.cluster.service import ServiceError
    from pipelines.cluster.submit import SUCCEEDED, StillRunningError, again, failures, state_of
    from pipelines.cluster.submit import wait as wait_for
    from pipelines.display import Watching

    try:
        with Watching() as watching:
            run = wait_for(service, run_id, watching.show, timeout=seconds)
    except KeyboardInterrupt:
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(130)
    except (StillRunningError, ServiceError, InputError) as error:
        click.echo(f"rco: {error}", err=True)
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(STILL_RUNNING if isinstance(error, StillRunningError) else NO_SERVICE)
    state = state_of(run)
    if state == SUCCEEDED:
        click.echo("the run succeeded")
        return
    click.echo(f"rco: the run ended as {state}", err=True)
    for line in failures(run, service.namespace):
        click.echo(f"  {service.clean(line)}", err=True)
    sys.exit(RUN_FAILED)


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Trouble with a cluster is one paragraph and an exit status."""
    from pipelines.cluster.service import ServiceError
    from pipelines.cluster.submit import RunGoneError

    try:
        yield
    except ServiceError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(2 if error.status in (400, 409, 413, 422) else NO_SERVICE)
    except RunGoneError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(RUN_FAILED)
