"""A stub of Kubeflow Pipelines' v2beta1 API, over real HTTP on the loopback interface.

It is not KFP: it keeps what it is sent and runs nothing; a run goes through the states of a script, one a look. Messages are
kfp-server-api's models in their own serialisation, and packages are read with KFP's protos. What it refuses, with which
status and in which of the two forms of error, is what the service does as far as its source tells. What it says of tasks has
the shape that a real KFP 2.17 has (tests/recorded): see `_Nodes`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import flask
import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from werkzeug.serving import make_server

LOGIN_PAGE = "<!DOCTYPE html><html><head><title>dex</title></head><body><form>Log in to Your Account</form></body></html>"
UI_PAGE = "<!doctype html><html><head><title>Kubeflow Pipelines</title></head><body></body></html>"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)  # what the service says of a time that is not yet

#: What a run does: its state, and the states of its tasks, at every look. A task is named by its path below the root ("check",
#: "stage-1/select-anchors"; all but the check lie in exit-handler-1). Its state is one of the service's, or STARTING (its
#: driver runs), WAITING (its pod does), CACHED, NOT_RUN; "FAILED*3" after three pods.
Script = Sequence[tuple[str, Mapping[str, str]]]
SUCCEEDS: Script = (
    ("PENDING", {}),
    ("RUNNING", {"check": "STARTING"}),
    ("RUNNING", {"check": "RUNNING"}),
    ("RUNNING", {"check": "SUCCEEDED", "prepare-data": "CACHED", "train-teacher": "RUNNING"}),
    ("SUCCEEDED", {"check": "SUCCEEDED", "prepare-data": "CACHED", "train-teacher": "SUCCEEDED", "close-run": "SUCCEEDED"}),
)
FAILS: Script = (
    ("RUNNING", {"check": "RUNNING"}),
    ("FAILED", {"check": "SUCCEEDED", "train-teacher": "FAILED", "report": "NOT_RUN", "close-run": "SUCCEEDED"}),
)
ENDLESS: Script = (("RUNNING", {"check": "SUCCEEDED", "train-teacher": "RUNNING"}),)


@dataclass
class Fault:
    """Trouble for requests that match.

    Attributes:
        path: regular expression, searched in "METHOD /path".
        status: to answer with; 0: the connection is cut without an answer.
        body: of the answer; text as HTML, anything else as JSON.
        times: how often, before all is well again.
        late: do what was asked first.
        meet: answer only when as many such requests as it has parties have got theirs.
    """

    path: str
    status: int = 500
    body: Any = None
    times: int = 1
    late: bool = False
    meet: threading.Barrier | None = None


class RefusalError(Exception):
    """A request that the service answers with an error. Its uploads and its other calls put it in different forms."""

    def __init__(self, status: int, message: str, *, upload: bool = False) -> None:
        super().__init__(message)
        code = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6}.get(status, 13)
        self.status = status
        self.body: dict[str, Any] = {"error": message, "code": code, "message": message, "details": []}
        if upload:
            self.body = {"error_message": message, "error_details": message}


@functools.cache
def read_package(content: bytes) -> tuple[Any, Any]:
    """The pipeline and what it needs of its platform, or None; refuses what the service refuses."""
    spec = platform = None
    try:
        documents = list(yaml.load_all(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise RefusalError(400, f"unable to decode yaml document: {error}", upload=True) from None
    for document in documents:
        if not isinstance(document, dict):
            continue
        try:
            if "pipelineInfo" in document or "schemaVersion" in document:
                if spec is not None:
                    raise RefusalError(400, "multiple pipeline specs provided", upload=True)
                spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
            elif "kubernetes" in (document.get("platforms") or {}):
                if platform is not None:
                    raise RefusalError(400, "multiple platform specs provided", upload=True)
                platform = json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
                for executor in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
                    json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
        except json_format.ParseError as error:
            raise RefusalError(400, f"invalid v2 pipeline spec: {error}", upload=True) from None
    if spec is None:
        raise RefusalError(400, "no pipeline spec is provided", upload=True)
    if spec.schema_version != "2.1.0":
        raise RefusalError(400, f"KFP only supports schema version 2.1.0, but has {spec.schema_version}", upload=True)
    if not spec.pipeline_info.name or not spec.HasField("root"):
        raise RefusalError(400, "invalid v2 pipeline spec: name or root is empty", upload=True)
    return spec, platform


def check_parameters(spec: Any, given: Mapping[str, Any]) -> None:
    """Refuse what the service refuses before it makes a run."""
    kinds = pipeline_spec_pb2.ParameterType.ParameterTypeEnum
    known = spec.root.input_definitions.parameters
    wanted = {"NUMBER_DOUBLE": (int, float), "NUMBER_INTEGER": (int, float), "STRING": str, "LIST": list, "STRUCT": dict}
    for name, parameter in known.items():
        kind = kinds.Name(parameter.parameter_type)
        if name not in given:
            if not parameter.is_optional and not parameter.HasField("default_value"):
                raise RefusalError(
                    400, f"parameter {name} is not optional, yet has neither default value nor user provided value"
                )
        elif isinstance(given[name], bool) != (kind == "BOOLEAN") or not isinstance(given[name], wanted.get(kind, bool)):
            raise RefusalError(400, f"input parameter {name} requires type {kind}, but the parameter value is not of it")
    if extra := set(given) - set(known):
        raise RefusalError(400, f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    query: dict[str, str]


@dataclass
class KfpStub:
    """The stub's state, open for tests to set and to look at.

    Attributes:
        multi_user: whether runs live in namespaces.
        token: that the header Authorization must bear, if set. Others are answered 401, with what they sent.
        cookie: that must be sent, if set; others are sent to a sign-in page, as Dex does it.
        header: name and value that must be sent.
        tag: the version that the UI's healthz tells.
        prefix: of all paths.
        script: of runs to come.
        again: what a run does after it was tried again.
        doubled: whether KFP's defaults are in force, which make every node a retry node.
        freezes: looks after which the list of tasks does not change; the workflow is larger than 1 MB then.
        logs: path of a task -> the log of its last pod. Others are gone.
        page: the most entries of a list in one answer.
        address: set while it listens.
    """

    multi_user: bool = False
    token: str = ""
    cookie: str = ""
    header: tuple[str, str] | None = None
    tag: str = ""
    prefix: str = ""
    script: Script = SUCCEEDS
    again: Script = SUCCEEDS
    doubled: bool = True
    freezes: int | None = None
    logs: dict[str, str] = field(default_factory=dict)
    page: int = 100
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    pipelines: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    experiments: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._client = api.ApiClient()

    @contextlib.contextmanager
    def listening(self, ssl_context: Any = None) -> Iterator[KfpStub]:
        """Answer, on a free port, for the length of a `with` block."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = make_server("127.0.0.1", 0, self._app(), threaded=True, ssl_context=ssl_context)
        self.address = f"http{'s' if ssl_context else ''}://127.0.0.1:{server.server_port}{self.prefix}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def asked(self, what: str) -> int:
        """How many requests matched a regular expression in "METHOD /path"."""
        return sum(bool(re.search(what, f"{r.method} {r.path}")) for r in self.requests)

    def _app(self) -> flask.Flask:
        app = flask.Flask("kfp-stub")
        base = f"{self.prefix}/apis/v2beta1"

        def route(method: str, path: str, answer: Callable[..., Any]) -> None:
            app.add_url_rule(f"{base}{path}", f"{method} {path}", self._guarded(answer), methods=[method])

        route("GET", "/healthz", self._healthz)
        route("GET", "/pipelines", lambda: self._list(self.pipelines, "pipelines", api.V2beta1ListPipelinesResponse))
        route("POST", "/pipelines", self._create_pipeline)
        route("GET", "/pipelines/names/<name>", self._pipeline_by_name)
        route("GET", "/pipelines/<id>", lambda id: self._get(self.pipelines, id))
        route("POST", "/pipelines/upload", self._upload_pipeline)
        route("POST", "/pipelines/upload_version", self._upload_version)
        route("GET", "/pipelines/<id>/versions", self._list_versions)
        route("GET", "/pipelines/<id>/versions/<version>", lambda id, version: self._get(self.versions, version))
        route("GET", "/experiments", lambda: self._list(self.experiments, "experiments", api.V2beta1ListExperimentsResponse))
        route("POST", "/experiments", self._create_experiment)
        route("GET", "/experiments/<id>", lambda id: self._get(self.experiments, id))
        route("GET", "/runs", self._list_runs)
        route("POST", "/runs", self._create_run)
        route("GET", "/runs/<id>", self._look_at_run)
        route("POST", "/runs/<id>:terminate", self._terminate)
        route("POST", "/runs/<id>:retry", self._retry)
        route("DELETE", "/runs/<id>", self._delete_run)
        path = f"{self.prefix}/apis/v1alpha1/runs/<id>/nodes/<node>/log"
        app.add_url_rule(path, "log", self._guarded(self._log))
        app.add_url_rule("/dex/auth/local/login", "login", lambda: LOGIN_PAGE, methods=["GET", "POST"])
        app.register_error_handler(404, lambda _: (json.dumps({"code": 5, "message": "Not Found", "details": []}), 404))
        return app

    def _guarded(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        """Faults, and who may ask, around an answer."""

        def answer_if(**arguments: str) -> Any:
            r = flask.request
            with self._lock:
                self.requests.append(Request(r.method, r.path, dict(r.headers), dict(r.args)))
                fault = next((f for f in self.faults if f.times > 0 and re.search(f.path, f"{r.method} {r.path}")), None)
                if fault is not None:
                    fault.times -= 1
            if fault is not None:
                if fault.meet is not None:
                    held = answer(**arguments)
                    fault.meet.wait(30)
                    return held
                if fault.late:
                    answer(**arguments)
                if fault.status == 0:
                    r.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                html = isinstance(fault.body, str)
                content = fault.body if html else json.dumps(fault.body or {"code": 13, "message": "out of order"})
                return flask.Response(content, fault.status or 500, mimetype="text/html" if html else "application/json")
            try:
                return self._admit() or answer(**arguments)
            except RefusalError as refusal:
                return flask.Response(json.dumps(refusal.body), refusal.status, mimetype="application/json")

        return answer_if

    def _admit(self) -> Any:
        sent = flask.request.headers
        if self.token and sent.get("Authorization") != f"Bearer {self.token}":
            raise RefusalError(401, f"Request header error: {sent.get('Authorization')!r} is not valid")
        if self.header and sent.get(self.header[0]) != self.header[1]:
            raise RefusalError(403, f"RBAC: access denied for {sent.get(self.header[0])!r}")
        if self.cookie and self.cookie not in sent.get("Cookie", ""):
            return flask.redirect(f"/dex/auth/local/login?state={secrets.token_hex(8)}&sent={sent.get('Cookie', '')}")
        return None

    def _say(self, model: Any) -> flask.Response:
        return flask.Response(json.dumps(self._client.sanitize_for_serialization(model)), mimetype="application/json")

    def _heard(self, kind: str) -> Any:
        return self._client.deserialize(SimpleNamespace(data=flask.request.get_data(as_text=True)), kind)

    def _healthz(self) -> Any:
        health = self._client.sanitize_for_serialization(api.V2beta1GetHealthzResponse(multi_user=self.multi_user))
        # The UI in front of the API adds its own.
        return flask.jsonify({**health, **({"frontendTagName": self.tag, "apiServerReady": True} if self.tag else {})})

    def _get(self, things: Mapping[str, Any], id: str) -> Any:
        if id not in things:
            raise RefusalError(404, f"{id} not found")
        return self._say(things[id])

    def _list(self, things: Mapping[str, Any], field: str, kind: Any, keep: Callable[[Any], bool] = lambda _: True) -> Any:
        query = flask.request.args
        namespace = query.get("namespace") or None
        found = [thing for thing in list(things.values()) if keep(thing)]
        if field in ("pipelines", "experiments"):
            found = [thing for thing in found if not self.multi_user or thing.namespace == namespace]
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            if predicate["operation"] not in ("EQUALS", 1) or predicate["key"] not in ("display_name", "name"):
                raise RefusalError(400, f"invalid filter {predicate}")
            wanted = predicate.get("string_value", predicate.get("stringValue"))
            found = [thing for thing in found if getattr(thing, predicate["key"]) == wanted]
        begin = int(query.get("page_token") or 0)
        end = begin + min(int(query.get("page_size") or 20), self.page)
        rest = str(end) if end < len(found) else None
        page = {field: found[begin:end] or None, "next_page_token": rest, "total_size": len(found)}
        return self._say(kind(**page))

    def _namespace(self, given: str | None) -> str | None:
        if self.multi_user and not given:
            raise RefusalError(400, "namespace must not be empty in multi-user mode")
        if not self.multi_user and given:
            raise RefusalError(400, "In single-user mode, the request shouldn't contain a namespace")
        return given or None

    def _make_pipeline(self, name: str, description: str | None, namespace: str | None, *, upload: bool) -> Any:
        if any(p.display_name == name and p.namespace == namespace for p in self.pipelines.values()):
            raise RefusalError(409, f"Already exist error: The name {name} already exist", upload=upload)
        id = secrets.token_hex(8)
        self.pipelines[id] = api.V2beta1Pipeline(
            pipeline_id=id, display_name=name, name=name, description=description, namespace=namespace, created_at=_now()
        )
        return self.pipelines[id]

    def _create_pipeline(self) -> Any:
        wanted = self._heard("V2beta1Pipeline")
        with self._lock:
            return self._say(
                self._make_pipeline(
                    wanted.display_name, wanted.description, wanted.namespace if self.multi_user else None, upload=False
                )
            )

    def _pipeline_by_name(self, name: str) -> Any:
        found = next((p for p in self.pipelines.values() if p.name == name), None)
        if found is None:
            raise RefusalError(404, f"pipeline {name} not found")
        return self._say(found)

    def _uploaded(self) -> tuple[str, bytes]:
        file = flask.request.files.get("uploadfile")
        if file is None or not (file.filename or "").endswith((".yaml", ".yml")):
            raise RefusalError(400, "Failed to read a pipeline spec file", upload=True)
        return str(file.filename), file.read()

    def _upload_pipeline(self) -> Any:
        filename, content = self._uploaded()
        read_package(content)
        query = flask.request.args
        with self._lock:
            namespace = query.get("namespace") if self.multi_user else None
            pipeline = self._make_pipeline(query.get("name") or filename, query.get("description"), namespace, upload=True)
            self._make_version(pipeline.pipeline_id, pipeline.display_name, content)
        return self._say(pipeline)

    def _make_version(self, pipeline_id: str, name: str, content: bytes) -> Any:
        if any(v.pipeline_id == pipeline_id and v.display_name == name for v in self.versions.values()):
            raise RefusalError(409, "Failed to create a pipeline version", upload=True)
        id = secrets.token_hex(8)
        spec, platform = read_package(content)
        shown = {"pipeline_spec": json_format.MessageToDict(spec)}
        if platform is not None:
            shown["platform_spec"] = json_format.MessageToDict(platform)
        self.packages[id] = content
        self.versions[id] = api.V2beta1PipelineVersion(
            pipeline_id=pipeline_id,
            pipeline_version_id=id,
            display_name=name,
            name=name,
            description=flask.request.args.get("description"),
            created_at=_now(),
            pipeline_spec=shown,
        )
        return self.versions[id]

    def _upload_version(self) -> Any:
        filename, content = self._uploaded()
        query = flask.request.args
        if query.get("pipelineid") not in self.pipelines:
            raise RefusalError(400, "Failed to create a pipeline version", upload=True)
        name = query.get("name") or filename
        if len(name) > 127:
            raise RefusalError(400, "PipelineVersion.Name length cannot exceed 127", upload=True)
        with self._lock:
            return self._say(self._make_version(query["pipelineid"], name, content))

    def _list_versions(self, id: str) -> Any:
        kind = api.V2beta1ListPipelineVersionsResponse
        return self._list(self.versions, "pipeline_versions", kind, lambda version: version.pipeline_id == id)

    def _create_experiment(self) -> Any:
        wanted = self._heard("V2beta1Experiment")
        namespace = self._namespace(wanted.namespace)
        with self._lock:
            if any(e.display_name == wanted.display_name and e.namespace == namespace for e in self.experiments.values()):
                raise RefusalError(409, f"Already exist error: experiment {wanted.display_name}")
            wanted.experiment_id, wanted.created_at, wanted.namespace = secrets.token_hex(8), _now(), namespace
            self.experiments[wanted.experiment_id] = wanted
        return self._say(wanted)

    def _list_runs(self) -> Any:
        experiment = flask.request.args.get("experiment_id")
        keep = lambda run: not experiment or run.experiment_id == experiment  # noqa: E731
        return self._list(self.runs, "runs", api.V2beta1ListRunsResponse, keep)

    def _create_run(self) -> Any:
        wanted = self._heard("V2beta1Run")
        if not wanted.display_name:
            raise RefusalError(400, "The run name is empty. Please specify a valid name")
        if wanted.experiment_id not in self.experiments:
            raise RefusalError(404, f"experiment {wanted.experiment_id} not found")
        if wanted.pipeline_version_reference is not None:
            content = self.packages.get(wanted.pipeline_version_reference.pipeline_version_id)
            if content is None:
                raise RefusalError(404, "pipeline version not found")
            spec, _ = read_package(content)
        else:
            given = wanted.pipeline_spec or {}
            documents = [given.get("pipeline_spec", given), *([given["platform_spec"]] if "platform_spec" in given else [])]
            spec, _ = read_package(yaml.safe_dump_all(documents).encode())
        check_parameters(spec, (wanted.runtime_config and wanted.runtime_config.parameters) or {})
        wanted.run_id, wanted.created_at, wanted.state = secrets.token_hex(8), _now(), "PENDING"
        with self._lock:
            self.runs[wanted.run_id], self.scripts[wanted.run_id], self.looks[wanted.run_id] = wanted, self.script, 0
        return self._say(wanted)

    def _look_at_run(self, id: str) -> Any:
        with self._lock:
            if id not in self.runs:
                raise RefusalError(404, f"Run {id} not found")
            script = self.scripts[id]
            look = self.looks[id]
            state, tasks = script[min(look, len(script) - 1)]
            self.looks[id] += 1
            run = self.runs[id]
            run.state = state
            if not run.state_history or run.state_history[-1].state != state:
                run.state_history = [*(run.state_history or ()), api.V2beta1RuntimeStatus(state=state, update_time=_now())]
            ended = state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
            before = run.finished_at if run.finished_at not in (None, _EPOCH) else _now()
            run.finished_at = before if ended else _EPOCH
            late = self.freezes is not None and look >= self.freezes
            if late:
                tasks = script[min(self.freezes or 0, len(script) - 1)][1]
            details = _Nodes("route-constrained-optimization-abcde", self.doubled).of(tasks)
            if late:  # tasks that began since then: known to KFP's database, not by Argo's list
                began = _BEGUN + datetime.timedelta(hours=1)
                details.append(api.V2beta1PipelineTaskDetail(task_id="late", start_time=began, end_time=began))
            run.run_details = api.V2beta1RunDetails(task_details=details) if tasks else None
            return self._say(run)

    def _log(self, id: str, node: str) -> Any:
        nodes = _Nodes("route-constrained-optimization-abcde", self.doubled)
        for path, text in self.logs.items():
            if node in nodes.pods(path):
                return flask.Response(text, mimetype="text/plain")
        raise RefusalError(500, f"InternalServerError: pod of node {node} not found")

    def _terminate(self, id: str) -> Any:
        with self._lock:
            if id not in self.runs:
                raise RefusalError(404, f"Run {id} not found")
            _, tasks = self.scripts[id][min(self.looks[id], len(self.scripts[id]) - 1)]
            stopped = {name: "FAILED" if state == "RUNNING" else state for name, state in tasks.items()}
            self.scripts[id], self.looks[id] = (("CANCELING", tasks), ("FAILED", stopped)), 0  # it says FAILED, not CANCELED
        return flask.jsonify({})

    def _retry(self, id: str) -> Any:
        with self._lock:
            if id not in self.runs:
                raise RefusalError(404, f"Run {id} not found")
            if self.runs[id].state != "FAILED":
                raise RefusalError(400, "Workflow must be Failed/Error to retry")
            self.scripts[id], self.looks[id] = self.again, 0
        return flask.jsonify({})

    def _delete_run(self, id: str) -> Any:
        with self._lock:
            self.runs.pop(id, None)
        return flask.jsonify({})


_BEGUN = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
_TOOK = datetime.timedelta(seconds=150)


@dataclass
class _Nodes:
    """What KFP 2.17 tells of the nodes of a workflow: no pod's name, no error, no id but those of children. Every node is there
    twice with KFP's own defaults, as it and as its try `(0)`; drivers, executors and the nodes around them are listed as well.
    """

    workflow: str
    doubled: bool
    entries: list[Any] = field(default_factory=list)

    def of(self, tasks: Mapping[str, str]) -> list[Any]:
        """The entries for tasks, by their paths and states."""
        self.entries = []
        inner: dict[str, list[str]] = {}
        for path, state in tasks.items():
            for full in self._task(path, state):
                inner.setdefault(full.rpartition(".")[0], []).append(full)
        around = dict(inner)
        for full in [*around]:
            while "." in full:  # the nodes that these lie in
                outer = re.sub(r"\.exit-handler-1\.onExit(\(0\))?$", "", full)
                outer = full.rpartition(".")[0] if outer == full else outer
                around.setdefault(outer, [])
                full = outer
        for full, children in around.items():
            self._dag(full, children)
        return self.entries

    def pods(self, path: str) -> list[str]:
        """Ids of the nodes that are pods of a task."""
        base = f"{self._full(path)}.executor"
        return [self._id(f"{base}({number})") for number in range(9)] + ([] if self.doubled else [self._id(base)])

    def _full(self, path: str) -> str:
        parts = path.split("/")
        if parts == ["close-run"]:
            parts = ["exit-handler-1.onExit", "close-run"]
        elif parts != ["check"]:
            parts = ["exit-handler-1", *parts]
        end = "(0)" if self.doubled else ""
        return ".".join(f"{part}{end}" for part in (self.workflow, "root", *parts))

    def _id(self, full: str) -> str:
        digest = 2166136261
        for byte in full.encode():
            digest = ((digest ^ byte) * 16777619) % 2**32
        return self.workflow if full == self.workflow else f"{self.workflow}-{digest}"

    def _add(self, name: str, state: str | None, children: Sequence[str] = (), *, at: int = 0, instant: bool = False) -> None:
        begun = _BEGUN + datetime.timedelta(seconds=at)
        over = state not in ("RUNNING", "PENDING")
        self.entries.append(
            api.V2beta1PipelineTaskDetail(
                task_id=f"id-{len(self.entries)}",
                display_name=name,
                state=state,
                create_time=_BEGUN,
                start_time=begun,
                end_time=(begun if instant or state is None else begun + _TOOK) if over else _EPOCH,
                child_tasks=[api.PipelineTaskDetailChildTask(pod_name=self._id(child)) for child in children] or None,
            )
        )

    def _pair(self, full: str, state: str | None, children: Sequence[str], *, at: int, instant: bool = False) -> None:
        """A node, and its try if there is one."""
        name = re.sub(r"\(0\)$", "", full.rpartition(".")[2])
        name = "exit-handler-1.onExit" if name == "onExit" else name
        if full.endswith("(0)"):
            self._add(name, state, [full], at=at, instant=instant)
            self._add(f"{name}(0)", state, children, at=at, instant=instant)
        else:
            self._add(name, state, children, at=at, instant=instant)

    def _task(self, path: str, state: str) -> list[str]:
        """The entries of one task; returns the full names of its nodes."""
        state, _, number = state.partition("*")
        tries, full = int(number or 1), self._full(path)
        bare = re.sub(r"\(0\)$", "", full)
        driver = bare + ("-driver(0)" if self.doubled else "-driver")
        at = 10 * sum(map(ord, path)) % 1000
        if state == "NOT_RUN":
            self._add(f"{path.rpartition('/')[2]}-driver", None, at=at)
            self._add(path.rpartition("/")[2], None, at=at)
            return []
        if state == "STARTING":
            self._pair(driver, "RUNNING", [], at=at)
            return [re.sub(r"\(0\)$", "", driver)]
        self._pair(driver, "SUCCEEDED", [bare], at=at)
        shown = {"CACHED": "SUCCEEDED", "WAITING": "RUNNING"}.get(state, state)
        executor = f"{full}.executor"
        self._pair(full, shown, [executor], at=at, instant=state == "CACHED")
        if state == "CACHED":
            self._add("executor", "SKIPPED", at=at, instant=True)
        else:
            several = self.doubled or tries > 1
            self._add("executor", shown, [f"{executor}({n})" for n in range(tries)] if several else [], at=at)
            for n in range(tries if several else 0):
                last = n == tries - 1
                pod = {"WAITING": "PENDING"}.get(state, shown) if last else "FAILED"
                self._add(f"executor({n})", pod, at=at)
        return [re.sub(r"\(0\)$", "", driver), bare]

    def _dag(self, full: str, children: Sequence[str]) -> None:
        bare = re.sub(r"\(0\)$", "", full)
        inside = [*children] or [self._full("check").rpartition(".")[0]]
        self._pair(full, "RUNNING", inside, at=0)
        if bare.endswith(".onExit"):
            self._add("exit-handler-1", "RUNNING", [bare], at=0)
        elif "." in full:  # that it is there is known by its driver's children
            self._add(f"{bare.rpartition('.')[2]}-driver", "SUCCEEDED", [bare], at=0)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
