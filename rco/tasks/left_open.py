"""Runs that MLflow shows as running though their pipeline has ended on the cluster.

A pipeline that is terminated in Kubeflow never runs its exit task. The check of the next one ends what it left open, where
Kubeflow's API says that it is over; never by its age alone.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rco.core.words import counted
from rco.tasks.process import log
from rco.tracking.context import Context
from rco.tracking.runs import end_open_runs, open_parents

_STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELED": "KILLED", "SKIPPED": "FAILED"}
_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # Kubeflow's; those of local runs look otherwise
_MOST = 20  # runs that a check asks about: it must stay quick


def close_left_open(context: Context) -> int:
    """End the runs of earlier pipelines of this experiment that Kubeflow reports as ended; returns how many pipelines.

    On a machine that is no pod nothing is asked. Raises what MLflow's client raises.
    """
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return 0
    others = [run for run in open_parents(context) if _RUN_ID.fullmatch(run)][:_MOST]
    closed = unknown = 0
    state_of = asking(os.environ)
    for run in others:
        state = state_of(run)
        if state is None:
            unknown += 1
        elif state in _STATUS:
            end_open_runs(replace(context, pipeline_run=run), _STATUS[state])
            closed += 1
    if closed:
        log.info("ended in MLflow: what %s had left open", counted(closed, "earlier pipeline run"))
    if unknown:
        still = counted(unknown, "earlier pipeline run")
        log.info("MLflow shows %s as running; Kubeflow's API cannot be asked from here: rco wait RUN ends what is over", still)
    return closed


def asking(environment: Mapping[str, str], token: Path = _TOKEN) -> Callable[[str], str | None]:
    """Asks Kubeflow's API for the state of a run; None: it does not answer, or not us. It is asked no more then."""
    host = environment.get("ML_PIPELINE_SERVICE_HOST") or "ml-pipeline.kubeflow"
    port = environment.get("ML_PIPELINE_SERVICE_PORT_HTTP") or environment.get("ML_PIPELINE_SERVICE_PORT") or "8888"
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.is_file() else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is inside the cluster
    away = False

    def state_of(run: str) -> str | None:
        nonlocal away
        if away:
            return None
        request = urllib.request.Request(f"http://{host}:{port}/apis/v2beta1/runs/{run}", headers=headers)
        try:
            with opener.open(request, timeout=5) as answer:
                document = json.loads(answer.read(64 * 2**20))
            return str(document["state"])
        except urllib.error.HTTPError as error:
            away = error.code != 404  # of one that was deleted nothing is known
            return None
        except (OSError, ValueError, KeyError, TypeError):
            away = True
            return None

    return state_of
