"""close_run: the exit task on a cluster."""

from kfp import dsl

from components.component import component


@component("light", cached=False)
def close_run(status: dsl.PipelineTaskFinalStatus):
    """End what is still open in MLflow, however the pipeline ended.

    Args:
        status: of the pipeline, from KFP.
    """
    from rco.tasks.report import close_run

    # Which of them a pipeline ends with depends on the version of the backend, and on whether its tasks were cached. Some say
    # RUNNING of one that has succeeded (kubeflow/pipelines#11979, #13321).
    known = {"SUCCEEDED": True, "COMPLETE": True, "CACHED": True, "FAILED": False, "CANCELED": False, "CANCELLED": False}
    close_run(succeeded=known.get(status.state))
