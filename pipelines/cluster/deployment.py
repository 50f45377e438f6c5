"""A site's deployment file: what its cluster gives to tasks, as frozen dataclasses that are valid from the moment they exist.

Everything here is fixed when a pipeline is compiled, not when it is run: it decides on which nodes pods start and which
secrets they see, which is the site's to say and not a run's; and an input of a task is part of its cache key, so that
more memory for the same training would train again.

No value in the file is a secret: those come by reference, from Secrets and ConfigMaps of the namespace.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from pipelines.cluster.quantities import cores, memory_bytes, seconds
from pipelines.yamlfile import read_yaml
from rco.core import mounted
from rco.core.errors import InputError, choice
from rco.core.settings import has_credentials

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
OPERATORS = ("Equal", "Exists")
EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
#: Tasks by what they need. Those on the pipeline's `device` are one class: they get a GPU together or not at all.
CLASSES = ("check", "light", "data", "train")
_MOST_GPUS = 64

_OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # the name of an object of Kubernetes
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUALIFIED = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_WORD}")  # the key of a label, the name of a resource
_LABEL = re.compile(rf"({_WORD})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
#: What KFP and the workflow engine write on pods themselves.
_THEIRS = ("pipeline/", "pipelines.kubeflow.org/", "workflows.argoproj.io/")

_OBJECT_HINT = "Write its name in the namespace of the runs, such as rco-settings"


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    metadata["help"] = help
    return field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)


def _match(name: str, value: str, pattern: re.Pattern[str], problem: str, remedy: str) -> None:
    if not pattern.fullmatch(value):
        raise InputError(name, value, problem, remedy)


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that pods bear with."""

    key: str = _setting("", "the taint's key (empty, with Exists: every taint)")
    operator: str = _setting("Equal", f"{' | '.join(OPERATORS)}")
    value: str = _setting("", "the taint's value, with Equal")
    effect: str = _setting("", "NoSchedule | PreferNoSchedule | NoExecute (empty: all)")
    toleration_seconds: int | None = _setting(None, "with NoExecute: how long to stay (default: for good)")

    def __post_init__(self) -> None:
        choice("operator", self.operator, OPERATORS)
        choice("effect", self.effect, EFFECTS)
        if self.key:
            _match("key", self.key, _QUALIFIED, "is not a key of a taint", "Write it as on the node, such as nvidia.com/gpu")
        elif self.operator != "Exists":
            raise InputError("key", self.key, "is empty", "Name the taint's key, or set operator: Exists to bear every taint")
        if self.operator == "Exists" and self.value:
            raise InputError(
                "value", self.value, "means nothing with operator: Exists", "Leave it out, or write operator: Equal"
            )
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise InputError(
                "toleration_seconds", self.toleration_seconds, "needs effect: NoExecute", "Set that effect, or leave this out"
            )


@dataclass(frozen=True, kw_only=True)
class TaskClass:
    """What the pod of a task gets, and what happens when it fails."""

    cpu_request: str = _setting("500m", "CPU to reserve")
    cpu_limit: str = _setting("", "CPU at most (empty: no limit)")
    memory_request: str = _setting("1Gi", "memory to reserve")
    memory_limit: str = _setting("4Gi", "memory at most (empty: no limit)")
    gpus: int = _setting(0, "GPUs a task: a worker trains on each; only train computes on any")
    gpu_type: str = _setting("nvidia.com/gpu", "the resource that a GPU is on your nodes, such as nvidia.com/mig-3g.40gb")
    shm: str = _setting("", "size of a memory-backed /dev/shm; it counts as memory of the task (empty: 64Mi, the runtime's)")
    node_selector: Mapping[str, str] = _setting(dict, "labels that a node must have")
    tolerations: tuple[Toleration, ...] = _setting(tuple, "taints to bear with; that of gpu_type is added by itself")
    retries: int = _setting(2, "times to try again after a failure")
    backoff: str = _setting("30s", "wait before the first retry")
    backoff_factor: int = _setting(2, "each further wait is so many times the one before")
    timeout: str = _setting("1h", "time that one try may take")
    process_restarts: int = _setting(
        0, "times to start a process that dies again in its pod, from its resume point; only for train"
    )

    def __post_init__(self) -> None:
        for resource, amount in (("cpu", cores), ("memory", memory_bytes)):
            request, limit = f"{resource}_request", f"{resource}_limit"
            reserved, most = amount(request, getattr(self, request)), getattr(self, limit)
            if most and amount(limit, most) < reserved:
                raise InputError(
                    limit, most, f"is below {request} = {getattr(self, request)}", "Raise it, or lower the request"
                )
        if not 0 <= self.gpus <= _MOST_GPUS:
            raise InputError("gpus", self.gpus, f"is not 0 to {_MOST_GPUS}", "A task has the GPUs of one node")
        _match(
            "gpu_type", self.gpu_type, _QUALIFIED, "is not the name of a resource", "Write it as nodes show it: nvidia.com/gpu"
        )
        if "/" not in self.gpu_type:
            raise InputError("gpu_type", self.gpu_type, "has no vendor", "Write it as nodes show it: nvidia.com/gpu")
        if self.shm:
            size = memory_bytes("shm", self.shm)
            if self.memory_limit and size >= memory_bytes("memory_limit", self.memory_limit):
                raise InputError(
                    "shm", self.shm, f"fills memory_limit = {self.memory_limit}, which it counts towards", "Raise that limit"
                )
        _labels("node_selector", self.node_selector)
        for name, least in (("retries", 0), ("backoff_factor", 1), ("process_restarts", 0)):
            value = getattr(self, name)
            if not least <= value <= 100:
                raise InputError(name, value, f"is not {least} to 100", f"Give a whole number from {least} to 100")
        seconds("backoff", self.backoff)
        seconds("timeout", self.timeout)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A ConfigMap or Secret whose keys become environment variables of every task (`rco.core.mounted`)."""

    config_map: str = _setting("", "name of a ConfigMap")
    secret: str = _setting("", "or of a Secret")
    variables: Mapping[str, str] = _setting(
        dict, "variable: key that holds its value; a list where both have one name", a_list_will_do=True
    )
    optional: bool = _setting(
        True, "go on without what is missing; false: a task fails without a key, and its pod waits for the object"
    )

    def __post_init__(self) -> None:
        if bool(self.config_map) == bool(self.secret):
            raise InputError(
                "config_map", self.config_map or self.secret, "and secret exclude each other, and one is needed", "Name one"
            )
        which = "config_map" if self.config_map else "secret"
        _match(which, self.config_map or self.secret, _OBJECT, "is not the name of an object", _OBJECT_HINT)
        if not self.variables:
            raise InputError("variables", [], "is empty", "List the keys to hand on, such as [AWS_ACCESS_KEY_ID]")
        for variable, key in self.variables.items():
            _match("variables", variable, _VARIABLE, "is not the name of a variable", "Write it as AWS_ACCESS_KEY_ID")
            _match("variables", key, _KEY, "is not a key of a ConfigMap or Secret", "Write the key's name, never a value")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A PersistentVolumeClaim that exists, mounted in the tasks that read data or train."""

    claim: str = _setting("", "name of the PersistentVolumeClaim")
    path: str = _setting("", "where it is mounted")
    sub_path: str = _setting("", "folder of the volume to mount (empty: all of it)")

    def __post_init__(self) -> None:
        _match("claim", self.claim, _OBJECT, "is not the name of a PersistentVolumeClaim", _OBJECT_HINT)
        if not _is_folder(self.path):
            raise InputError("path", self.path, "is not a folder to mount at", "Write an absolute path such as /data")
        if self.sub_path.startswith("/") or ".." in self.sub_path.split("/"):
            raise InputError("sub_path", self.sub_path, "is not inside the volume", "Write a relative path such as rco/data")


@dataclass(frozen=True, kw_only=True)
class CertificateAuthority:
    """A ConfigMap with the certificates (PEM) that HTTPS to MLflow and to the S3 store is checked against."""

    config_map: str = _setting("", "name of the ConfigMap (empty: what the image trusts)")
    key: str = _setting("ca.crt", "key that holds the certificates")

    def __post_init__(self) -> None:
        if self.config_map:
            _match("config_map", self.config_map, _OBJECT, "is not the name of a ConfigMap", _OBJECT_HINT)
        _match("key", self.key, _KEY, "is not a key of a ConfigMap", "Write its name, such as ca.crt")


def _environment() -> tuple[Source, ...]:
    settings, credentials = mounted.DEFAULT
    return (
        Source(config_map=settings.folder.partition("/")[2], variables=settings.variables),
        Source(secret=credentials.folder.partition("/")[2], variables=credentials.variables),
    )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a site's cluster gives to tasks. The defaults run on any cluster, without a GPU."""

    image_pull_policy: str = _setting("IfNotPresent", f"{' | '.join(PULL_POLICIES)}")
    image_pull_secrets: tuple[str, ...] = _setting(tuple, "Secrets that hold the registry's credentials")
    labels: Mapping[str, str] = _setting(dict, "labels of every task's pod")
    annotations: Mapping[str, str] = _setting(dict, "annotations of every task's pod")
    environment: tuple[Source, ...] = _setting(_environment, "what tasks know of MLflow and S3, by reference")
    certificates: CertificateAuthority = field(
        default_factory=CertificateAuthority, metadata={"help": "of a private certificate authority"}
    )
    volumes: tuple[Volume, ...] = _setting(tuple, "PersistentVolumeClaims for the tasks that read data or train")
    resume: str = _setting("", "where interrupted training goes on from: s3://bucket/key, or a folder on one of the volumes")
    check: TaskClass = field(
        default_factory=lambda: TaskClass(retries=0),
        metadata={"help": "check: not tried again by default, they are there to fail at once"},
    )
    light: TaskClass = field(
        default_factory=TaskClass,
        metadata={"help": "select_anchors, register_student, report, close_run"},
    )
    data: TaskClass = field(
        default_factory=lambda: TaskClass(cpu_request="1", memory_request="2Gi", memory_limit="16Gi", timeout="12h"),
        metadata={"help": "prepare_data"},
    )
    train: TaskClass = field(
        default_factory=lambda: TaskClass(
            cpu_request="2",
            memory_request="4Gi",
            memory_limit="16Gi",
            shm="2Gi",
            backoff="1m",
            timeout="2d",
            process_restarts=3,
        ),
        metadata={"help": "train_teacher, init_students, distill_students, evaluate_students"},
    )

    def __post_init__(self) -> None:
        choice("image_pull_policy", self.image_pull_policy, PULL_POLICIES)
        for name in self.image_pull_secrets:
            _match("image_pull_secrets", name, _OBJECT, "is not the name of a Secret", "Name a Secret, never what it holds")
        _labels("labels", self.labels)
        for key in (*self.labels, *self.annotations):
            if key.startswith(_THEIRS):
                raise InputError("labels", key, "is Kubeflow's own", f"Choose another prefix than {', '.join(_THEIRS)}")
        for key in self.annotations:
            _match("annotations", key, _QUALIFIED, "is not a key of an annotation", "Write it as example.com/name")
        _once("environment", [variable for source in self.environment for variable in source.variables])
        _once("volumes", [volume.path for volume in self.volumes])
        _once("volumes", [volume.claim for volume in self.volumes])
        self._check_resume()
        for name in ("check", "light", "data"):
            if getattr(self, name).gpus:
                raise InputError(
                    f"{name}.gpus",
                    getattr(self, name).gpus,
                    "would be idle",
                    "Set train.gpus: only that class computes on a GPU",
                )
            if restarts := getattr(self, name).process_restarts:
                raise InputError(
                    f"{name}.process_restarts",
                    restarts,
                    "would do nothing",
                    "Set train.process_restarts: only that class trains",
                )

    def _check_resume(self) -> None:
        if has_credentials(self.resume) or "?" in self.resume:
            raise InputError("resume", "...", "holds credentials", "Put them into the Secret that environment names")
        if not self.resume or re.fullmatch(r"s3://[^/]+(/.+)?", self.resume):
            return
        on = [v.path for v in self.volumes if self.resume == v.path or self.resume.startswith(v.path.rstrip("/") + "/")]
        if not on or not _is_folder(self.resume):
            raise InputError(
                "resume",
                self.resume,
                "is neither an s3:// address nor a folder on one of the volumes",
                "A pod's own disk ends with it: write s3://bucket/key, or name a volume that is mounted above this folder",
            )

    def of(self, kind: str) -> TaskClass:
        """The task class of that name, one of `CLASSES`."""
        found: TaskClass = getattr(self, kind)
        return found

    @property
    def results(self) -> str:
        """Where results of trainings lie that runs share: below `resume`; empty where that is not named."""
        return f"{self.resume.rstrip('/')}/results" if self.resume else ""

    @property
    def parameters(self) -> dict[str, Any]:
        """Defaults of pipeline parameters that follow from what tasks get.

        `auto` would be resolved by `check`, on a pod that has no GPU and other cores than those that compute. A wrong secret
        is found out late on a cluster, so that the first task asks for what the environment names.
        """
        train = self.train
        limit = train.cpu_limit or train.cpu_request
        return {
            "device": "cuda" if train.gpus else "cpu",
            "threads": max(1, min(8, math.floor(cores("cpu", limit)))),
            "workers_per_task": max(1, train.gpus),
            "check_services": True,
        }


def read_deployment(path: Path | None) -> Deployment:
    """A site's settings from its deployment file; what it leaves out keeps its default, as does everything without a file.

    Raises:
        InputError: no such file, too large, not YAML, an unknown key, or a value that cannot work; it names the key.
    """
    if path is None:
        return Deployment()
    if not path.is_file():
        raise InputError("deployment", str(path), "is not a file", "Name a YAML file, such as docs/kubernetes/deployment.yaml")
    document = read_yaml(path, "deployment", "Write it as docs/kubernetes/deployment.yaml is written")
    deployment: Deployment = _build(Deployment, Deployment(), {} if document is None else document, "")
    return deployment


def _build(kind: type, default: Any, given: Any, where: str) -> Any:
    """A dataclass from a mapping. What the mapping leaves out is as in `default`, if there is one."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(given, dict):
        raise InputError(where or "deployment", _shown(given), "is not a mapping", f"Its keys may be: {', '.join(known)}")
    prefix, types, values = f"{where}." if where else "", get_type_hints(kind), {}
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {prefix}{near[0]}? " if near else ""
            raise InputError(f"{prefix}{name}", _shown(value), "is not known", f"{hint}Choose from: {', '.join(known)}")
        current = getattr(default, name) if default is not None else None
        named = "a_list_will_do" in known[name].metadata
        values[name] = _read(types[name], current, value, f"{prefix}{name}", named)
    try:
        return replace(default, **values) if default is not None else kind(**values)
    except InputError as error:
        raise error.renamed(f"{prefix}{error.parameter}") from None


def _read(kind: Any, default: Any, value: Any, where: str, named: bool) -> Any:
    """A value as a field of type `kind` holds it."""
    if is_dataclass(kind):
        return _build(cast(type, kind), default, value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise InputError(where, _shown(value), "is not a list", "Write it as [A, B], or one item a line after '- '")
        return tuple(_read(get_args(kind)[0], None, item, f"{where}[{i}]", False) for i, item in enumerate(value))
    if get_origin(kind) is Mapping:
        if named and isinstance(value, list):
            return _same(*(_text(item, where) for item in value))
        if not isinstance(value, dict):
            raise InputError(where, _shown(value), "is not a mapping", "Write one 'key: value' a line")
        return {_text(key, where): _text(item, f"{where}.{key}") for key, item in value.items()}
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(where, _shown(value), "is neither true nor false", "Write true or false")
        return value
    if kind in (int, int | None):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(where, _shown(value), "is not a whole number", "Write it in digits")
        return value
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    """Text; numbers will do, as they do for Kubernetes where it counts cores."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(where, _shown(value), "is not text", "Write it in quotes")
    return str(value)


def _shown(value: Any) -> Any:
    """A value as an error shows it: what belongs elsewhere in a file may be long."""
    return value if isinstance(value, str | int | float | bool | None) else "..."


def _same(*names: str) -> dict[str, str]:
    """Variables that are named as the keys that hold their values."""
    return {name: name for name in names}


def _labels(name: str, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        _match(name, key, _QUALIFIED, "is not a key of a label", "Write it as example.com/name, or name alone")
        _match(f"{name}.{key}", value, _LABEL, "is not a value of a label", "At most 63 letters, digits, '-', '_' and '.'")


def _once(name: str, values: Sequence[str]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InputError(name, value, "is there twice", "Keep one of them")


def _is_folder(path: str) -> bool:
    return path.startswith("/") and path != "/" and not {"", ".", ".."} & set(path.rstrip("/").split("/")[1:])
