"""The first task: refuse what cannot work, resolve settings, open the run in MLflow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
from rco.config.plugins import require
from rco.core.errors import InputError
from rco.core.words import counted
from rco.models.families import packages
from rco.tasks.left_open import close_left_open
from rco.tasks.preflight import preflight
from rco.tasks.process import log, task
from rco.tasks.validate import costs_of_anchors, student_spec
from rco.tracking.context import Context, forgiving, require_writable
from rco.tracking.probe import PLAIN_ANCHORS, has_logged_models
from rco.tracking.runs import end_open_runs, open_parent, require_parent
from rco.training import results


@task
def check(
    parameters: Mapping[str, Any], *, compiled: Mapping[str, int], plugins: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Validate a whole run or comparison before anything expensive, resolve what was left open, and open the run in MLflow.

    Args:
        parameters: of a run, or of a comparison with its branches (`rco.config.branches.Comparison.read`).
        compiled: `rco.config.shape.Shape.steps` of the pipeline.
        plugins: of other packages, where the pipeline was compiled (`rco.config.plugins.installed`).

    Returns:
        the settings of every task, JSON-ready (`rco.tasks.settings.Settings.outputs`).

    Raises:
        InputError: the first thing that cannot work.
    """
    require(plugins)
    context = Context.from_environment()
    require_writable(context.tracking_uri)
    comparison = Comparison.read(parameters)
    settings = preflight(comparison, compiled={key: int(steps) for key, steps in compiled.items()})
    if comparison.is_run:
        compute = settings.teacher.compute
        computing = (compute.device, compute.precision, counted(compute.threads, "thread"))
        log.info("settings are sound; computing on %s in %s with %s", *computing)
    else:
        branches, seeds = len(comparison.branches), len(comparison.seeds)
        counts = (counted(branches, "branch", "branches"), counted(seeds, "seed"), counted(branches * seeds, "student"))
        log.info("%s, %s: %s", *counts)
    for cost in costs_of_anchors(comparison.branches):
        log.info("%s", cost)
    context = replace(context, experiment=settings.filing.experiment)
    if comparison.reference.services.check_services:
        require_services(context, functools.partial(open_parent, context, **settings.filing.parent))
    elif context.active:
        with forgiving("The parent run"):
            open_parent(context, **settings.filing.parent)
            mention_anchors(context)
    if context.active:
        with forgiving("The end of earlier pipeline runs"):
            close_left_open(context)
    if context.active and settings.filing.registered_model:
        mention_tracing(comparison.reference)
    if not context.active:
        log.warning("MLFLOW_TRACKING_URI is not set: nothing is tracked; the records stay in the artifacts")
    mention_results()
    return settings.outputs()


def mention_tracing(config: RunConfig) -> None:
    """Say it where the registry cannot have the student as a traced graph. Only code that is not ours needs the trial; what is
    to be exported has been traced by `validate`."""
    if config.exporting.export or not packages.is_foreign(config.student.model):
        return
    from rco.data.sources.kinds import check_source
    from rco.exporting.trial import try_tracing

    try:
        try_tracing(student_spec(config, check_source(config.data)))
    except InputError as error:
        log.warning(
            "the registry cannot have %s as a traced graph: it %s. %s. It will be registered with the code that makes it",
            *(config.student.model, error.problem, error.remedy),
        )


def mention_results() -> None:
    """Say it where runs share no results. The local runner names a folder for them, and a deployment file with `resume` a
    place; empty, the variable says that none are wanted."""
    if results.VARIABLE not in os.environ:
        log.info("%s is not set: what another run has trained is not found, but trained again", results.VARIABLE)


def mention_anchors(context: Context) -> None:
    """Say it where the server has no logged models."""
    client = context.client()
    if not has_logged_models(client, require_parent(context, client).info.experiment_id):
        log.warning("this MLflow server has no logged models (MLflow 3 has): %s", PLAIN_ANCHORS)


def require_services(context: Context, open_parent: Callable[[], str]) -> None:
    """Use what the environment names, MLflow and S3, once: that a secret is wrong is known before a GPU is taken.

    Raises:
        InputError: with all that is wrong.
    """
    from rco.tasks import services

    opened: list[str] = []

    def opening() -> str:
        opened.append(open_parent())
        return opened[-1]

    checks = services.services(context if context.active else replace(context, tracking_uri=""), open_run=opening)
    try:
        findings = services.require(checks)
    except InputError:
        if opened:  # no task comes after a check that fails
            with forgiving("The end of the pipeline run"):
                end_open_runs(context, "FAILED")
        raise
    for finding in findings:
        log.info("%s: %s", finding.name, finding.found)
        if finding.next_step:
            log.warning("%s", finding.next_step)
