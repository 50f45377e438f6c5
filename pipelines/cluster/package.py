"""A compiled pipeline as a file: what is in it, and whether parameters fit it."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kfp
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.cluster.placement import Cluster
from pipelines.cluster.tasks import Planned, plan
from pipelines.compile import compile_to
from rco.config.kinds import COMPILED
from rco.config.shape import Shape
from rco.core.errors import InputError

LARGEST = 32 * 2**20  # bytes of a package that KFP takes
# Safe ones; libyaml's are ten times as fast.
_LOADER, _DUMPER = (getattr(yaml, f"CSafe{kind}", getattr(yaml, f"Safe{kind}")) for kind in ("Loader", "Dumper"))
_PYTHON = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: of the YAML.
        name: of the pipeline.
        description: of the pipeline.
        parameters: name -> KFP's type ("NUMBER_INTEGER").
        images: that its tasks run in.
        version: its content: sha256 of the YAML.
        compared: of a comparison of ours, the branches and the grid that it was compiled for; else None.
        tasks: of its graph, in their order.
        documents: the YAML's, to be read only: the pipeline, and what it needs of its platform.
    """

    path: Path
    name: str
    description: str
    parameters: dict[str, str]
    images: tuple[str, ...]
    version: str
    compared: dict[str, Any] | None = None
    tasks: tuple[Planned, ...] = ()
    documents: tuple[dict[str, Any], ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Package:
        """Read what `rco compile` or `kfp dsl compile` wrote.

        Raises:
            InputError: it is not such a file; both of its documents are read with KFP's own protos.
        """
        remedy = "Name what `rco compile` writes: build/pipelines/rco.yaml"
        if not path.is_file():
            raise InputError("package", str(path), "is not a file", remedy)
        if path.suffix not in (".yaml", ".yml"):
            raise InputError("package", str(path), "is not named .yaml", remedy)
        content = path.read_bytes()
        if len(content) > LARGEST:
            raise InputError("package", str(path), "has more than the 32 MiB that KFP takes", remedy)
        try:
            documents = _documents(content)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError("package", str(path), f"is not YAML ({str(error).splitlines()[0]})", remedy) from None
        if any(isinstance(document, dict) and document.get("kind") == "Workflow" for document in documents):
            raise InputError("package", str(path), "was compiled with KFP 1", f"Compile it with KFP {kfp.__version__}")
        if not 1 <= len(documents) <= 2 or not all(isinstance(document, dict) for document in documents):
            raise InputError("package", str(path), "is not a pipeline, and what it needs of its platform", remedy)
        try:
            spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
            for platform in documents[1:]:
                json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        except json_format.ParseError as error:
            problem = f"is not a pipeline of KFP {kfp.__version__} ({str(error).splitlines()[0][:200]})"
            raise InputError("package", str(path), problem, remedy) from None
        if not spec.pipeline_info.name or not spec.HasField("root"):
            raise InputError("package", str(path), "is not a whole pipeline: it has no name or no root", remedy)
        types = pipeline_spec_pb2.ParameterType.ParameterTypeEnum
        known = {name: types.Name(p.parameter_type) for name, p in spec.root.input_definitions.parameters.items()}
        executors = json_format.MessageToDict(spec.deployment_spec).get("executors", {})
        return cls(
            path=path,
            name=spec.pipeline_info.name,
            description=spec.pipeline_info.description,
            parameters=known,
            images=tuple(sorted({e["container"]["image"] for e in executors.values() if "container" in e})),
            version=hashlib.sha256(content).hexdigest(),
            compared=_compared(spec),
            tasks=tuple(plan(*documents)),
            documents=documents,
        )

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Refuse parameters that this pipeline does not have, or has with another type.

        Raises:
            InputError: naming the first.
        """
        for name, value in parameters.items():
            kind = self.parameters.get(name)
            if kind is None:
                problem = f"is not a parameter of the package {self.path.name}"
                raise InputError(name, value, problem, "Leave it out, or compile the package anew")
            wrong = isinstance(value, bool) != (kind == "BOOLEAN") or not isinstance(value, _PYTHON.get(kind, object))
            if wrong:
                raise InputError(name, value, f"is not of the type that the package has ({kind})", "Compile the package anew")


@functools.lru_cache(maxsize=4)
def _documents(content: bytes) -> tuple[Any, ...]:
    """What a file of YAML holds: 0.2 s for a comparison, which is compiled, read, sent and waited for in one process."""
    return tuple(document for document in yaml.load_all(content, Loader=_LOADER) if document is not None)


def _compared(spec: pipeline_spec_pb2.PipelineSpec) -> dict[str, Any] | None:
    """The constants that the check of a comparison is given."""
    dags = [spec.root.dag, *(component.dag for component in spec.components.values() if component.HasField("dag"))]
    for dag in dags:
        if (task := dag.tasks.get("check")) is not None and {*COMPILED} <= set(task.inputs.parameters):
            given = {name: task.inputs.parameters[name].runtime_value.constant for name in COMPILED}
            return {name: json_format.MessageToDict(value) for name, value in given.items()}
    return None


def compile_package(shape: Shape, folder: Path, cluster: Cluster | None = None, *, cache: bool = True) -> Package:
    """Compile a pipeline.

    Args:
        shape: of the pipeline.
        cluster: that it is for.
        cache: let tasks that have not changed be taken from KFP's cache.
    """
    name = "rco.yaml" if shape.is_run else "comparison.yaml"
    package = Package.read(compile_to(folder / name, shape, cluster))
    return package if cache else uncached(package, folder)


def uncached(package: Package, folder: Path) -> Package:
    """The same pipeline with no task that may be taken from KFP's cache, and no training whose result may be found.

    A run of a version has no switch for it; and the one that KFP's client has for packages does not reach tasks inside
    sub-pipelines.
    """

    def strip(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: strip(value) for key, value in node.items() if key != "cachingOptions"}
        return [strip(item) for item in node] if isinstance(node, list) else node

    first, *rest = copy.deepcopy(package.documents)
    path = folder / f"{package.path.stem}-uncached.yaml"
    for component in (first["root"], *first["components"].values()):
        if "dag" in component:
            component["dag"] = strip(component["dag"])
    for executor in first["deploymentSpec"]["executors"].values():
        for variable in executor.get("container", {}).get("env", ()):
            if variable["name"] == "RCO_RESULTS":
                variable["value"] = ""
    path.write_text(yaml.dump_all([first, *rest], Dumper=_DUMPER, sort_keys=True))
    return Package.read(path)
