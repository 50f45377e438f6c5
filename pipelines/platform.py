"""What a task is given on Kubernetes, beyond its image."""

from kfp import dsl, kubernetes

#: KFP's own label on every pod of a run. The placeholder for the run's id would be an input, and every cache key would change.
RUN_ID_FIELD = "metadata.labels['pipeline/runid']"


def on_cluster(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Tell a task which pipeline run it works for."""
    kubernetes.use_field_path_as_env(task, env_name="RCO_PIPELINE_RUN", field_path=RUN_ID_FIELD)
    return task
