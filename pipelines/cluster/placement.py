"""What a task is given on Kubernetes, beyond its code: image, resources, secrets, retries, timeout, cache policy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kfp import dsl, kubernetes

from components.component import POLICIES
from components.image import IMAGE
from pipelines.cluster.deployment import Deployment, Source, TaskClass
from pipelines.cluster.quantities import seconds
from rco.core import mounted

#: KFP's own label on every pod of a run. The placeholder for the run's id would be an input, and every cache key would change.
RUN_ID_FIELD = "metadata.labels['pipeline/runid']"
#: How long the workflow engine goes on retrying. It counts from the start of the first try, ends a retry that is running when
#: it is over, and is one hour if nothing is said. `retries` and `timeout` are the limits here; this must not be.
_RETRY_WINDOW = "365d"
_CERTIFICATES = "/etc/rco/certificates"
_VOLUME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # the name of a volume


def place_locally(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Place a task on this machine: only its cache policy matters."""
    return task.set_caching_options(POLICIES[task.component_spec.name].cached)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a compiled pipeline runs: what the site gives to tasks, and the image that they all are.

    Attributes:
        image: best by digest.
    """

    deployment: Deployment = field(default_factory=Deployment)
    image: str = IMAGE

    def place(self, task: dsl.PipelineTask) -> dsl.PipelineTask:
        """Give a task what its class gets, and tell it which pipeline run it works for."""
        site, name = self.deployment, task.component_spec.name
        kind = POLICIES[name].task_class
        place_locally(task).set_container_image(self.image)
        container = task.container_spec
        container.command = ["python3", "-m", "components", POLICIES[name].module]  # (`components.__main__`)
        container.args = container.args[: container.args.index("--function_to_execute")]
        _resources(task, site.of(kind))
        _nodes(task, site.of(kind))
        _tries(task, site.of(kind))
        kubernetes.use_field_path_as_env(task, env_name="RCO_PIPELINE_RUN", field_path=RUN_ID_FIELD)
        kubernetes.set_image_pull_policy(task, site.image_pull_policy)
        if site.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(site.image_pull_secrets))
        for key, value in site.labels.items():
            kubernetes.add_pod_label(task, key, value)
        for key, value in site.annotations.items():
            kubernetes.add_pod_annotation(task, key, value)
        _services(task, site)
        if restarts := site.of(kind).process_restarts:
            task.set_env_variable("RCO_PROCESS_RESTARTS", str(restarts))
        if kind != "light" or (site.resume and name == "close-run"):  # which removes the run's resume points
            for volume in site.volumes:
                kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.path, sub_path=volume.sub_path)
            if site.resume:
                task.set_env_variable("RCO_RESUME", site.resume)
            if site.results and kind != "light":
                task.set_env_variable("RCO_RESULTS", site.results)
        return task


def _resources(task: dsl.PipelineTask, given: TaskClass) -> None:
    task.set_cpu_request(given.cpu_request).set_memory_request(given.memory_request)
    if given.cpu_limit:
        task.set_cpu_limit(given.cpu_limit)
    if given.memory_limit:
        task.set_memory_limit(given.memory_limit)
    if given.gpus:
        task.set_accelerator_type(given.gpu_type).set_accelerator_limit(given.gpus)
    if given.shm:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=given.shm)


def _nodes(task: dsl.PipelineTask, given: TaskClass) -> None:
    for label, value in given.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    if given.gpus:
        # Nodes with GPUs are commonly tainted with the resource's name, to keep other pods off.
        kubernetes.add_toleration(task, key=given.gpu_type, operator="Exists", effect="NoSchedule")
    for t in given.tolerations:
        kubernetes.add_toleration(
            task,
            key=t.key or None,
            operator=t.operator,
            value=t.value or None,
            effect=t.effect or None,
            toleration_seconds=t.toleration_seconds,
        )


def _tries(task: dsl.PipelineTask, given: TaskClass) -> None:
    if given.retries:
        task.set_retry(
            num_retries=given.retries,
            backoff_duration=f"{seconds('backoff', given.backoff)}s",
            backoff_factor=float(given.backoff_factor),
            backoff_max_duration=_RETRY_WINDOW,
        )
    kubernetes.set_timeout(task, seconds("timeout", given.timeout))


def _services(task: dsl.PipelineTask, site: Deployment) -> None:
    """MLflow's and S3's settings, by reference: no value of them is in the compiled pipeline."""
    mounts, others = _mounts(site)
    for (kind, name), mount in mounts.items():
        use = kubernetes.use_secret_as_volume if kind == "secret" else kubernetes.use_config_map_as_volume
        use(task, name, mount_path=str(mounted.FOLDER / mount.folder), optional=mount.optional)
        _name_once(task, "secret" if kind == "secret" else "configMap")
    if described := mounted.describe(mounts.values()):
        task.set_env_variable(mounted.VARIABLE, described)
    for source in others:
        _variables(task, source)
    if site.certificates.config_map:
        shared = mounts.get(("config-map", site.certificates.config_map))
        folder = str(mounted.FOLDER / shared.folder) if shared else _CERTIFICATES
        if not shared:
            kubernetes.use_config_map_as_volume(task, site.certificates.config_map, mount_path=folder)
        for variable in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):  # boto3's, and that of MLflow's client
            task.set_env_variable(variable, f"{folder}/{site.certificates.key}")


def _name_once(task: dsl.PipelineTask, kind: str) -> None:
    """Leave out the second way in which KFP names a constant object: every backend knows the first."""
    task.platform_config["kubernetes"][f"{kind}AsVolume"][-1].pop(f"{kind}NameParameter")


def _mounts(site: Deployment) -> tuple[dict[tuple[str, str], mounted.Mounted], list[Source]]:
    """The sources of the environment that can be mounted, by kind and name, and those that cannot.

    KFP calls a volume as the ConfigMap, Secret or claim that it is of. So two of one name cannot both be mounted, nor one whose
    name no volume may have: the keys of these become variables by reference.
    """
    taken = {"shm", *(volume.claim for volume in site.volumes)}
    found: dict[tuple[str, str], mounted.Mounted] = {}
    others = []
    for source in site.environment:
        kind, name = ("secret", source.secret) if source.secret else ("config-map", source.config_map)
        before = found.get((kind, name))
        certificates = kind == "secret" and name == site.certificates.config_map
        if before is None and (name in taken or certificates or not _VOLUME.fullmatch(name)):
            others.append(source)
            continue
        taken.add(name)
        variables = {**(before.variables if before else {}), **source.variables}
        optional = source.optional and (before is None or before.optional)
        found[kind, name] = mounted.Mounted(folder=f"{kind}/{name}", variables=variables, optional=optional)
    return found, others


def _variables(task: dsl.PipelineTask, source: Source) -> None:
    left = dict(source.variables)
    while left:  # once, unless a key serves several variables
        keys = {key: variable for variable, key in left.items()}
        named = {key: mounted.by_reference(variable) for key, variable in keys.items()}
        if source.secret:
            kubernetes.use_secret_as_env(task, source.secret, named, optional=source.optional)
        else:
            kubernetes.use_config_map_as_env(task, source.config_map, named, optional=source.optional)
        left = {variable: key for variable, key in left.items() if keys[key] != variable}
