"""The first task: refuse what cannot work, resolve settings, open the run in MLflow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rco.config.parameters import RunConfig
from rco.config.plugins import require
from rco.core.settings import jsonable
from rco.tasks.preflight import cost_of_anchors, planned_route, preflight
from rco.tasks.process import log, task
from rco.tasks.report import parent_of
from rco.tracking.context import Context, forgiving
from rco.tracking.runs import open_parent
from rco.training import results


@task
def check(
    parameters: Mapping[str, Any], *, max_stages: int, plugins: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Validate a whole run before anything expensive, resolve what was left open, and open the run in MLflow.

    Args:
        plugins: of other packages, where the pipeline was compiled (`rco.config.plugins.installed`).

    Returns:
        the settings of every task, JSON-ready.

    Raises:
        InputError: the first thing that cannot work.
    """
    require(plugins)
    config = RunConfig.from_flat(parameters)
    settings = preflight(config, max_stages)
    compute = settings.stage.compute
    log.info("settings are sound; computing on %s in %s with %d threads", compute.device, compute.precision, compute.threads)
    if cost := cost_of_anchors(config, *planned_route(config)):
        log.info("%s", cost)
    context = Context.from_environment()
    if config.services.check_services:
        require_services(context, functools.partial(open_parent, context, **parent_of(settings.filing)))
    elif context.active:
        with forgiving("The parent run"):
            open_parent(context, **parent_of(settings.filing))
    if not context.active:
        log.warning("MLFLOW_TRACKING_URI is not set: nothing is tracked; the records stay in the artifacts")
    mention_results()
    # KFP passes no nulls; what is left out is None again when `read_settings` rebuilds the settings.
    return {
        task: {name: value for name, value in values.items() if value is not None}
        for task, values in jsonable(settings).items()
    }


def mention_results() -> None:
    """Say it where runs share no results. The local runner names a folder for them, and a deployment file with `resume` a
    place; empty, the variable says that none are wanted."""
    if results.VARIABLE not in os.environ:
        log.info("%s is not set: what another run has trained is not found, but trained again", results.VARIABLE)


def require_services(context: Context, open_parent: Callable[[], str]) -> None:
    """Use what the environment names, MLflow and S3, once: that a secret is wrong is known before a GPU is taken.

    Raises:
        InputError: with all that is wrong.
    """
    from rco.tasks import services

    checks = services.services(context if context.active else replace(context, tracking_uri=""), open_run=open_parent)
    for finding in services.require(checks):
        log.info("%s: %s", finding.name, finding.found)
        if finding.next_step:
            log.warning("%s", finding.next_step)
