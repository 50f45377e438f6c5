"""A stub of Kubernetes' API over real HTTP on the loopback interface, and one of a registry of images.

It is not Kubernetes: it keeps objects by their paths, and has nothing scheduled. What it refuses has the bodies of the real API
server: objects of the kind Status, with reason, code and its wording. Rights are judged by real Roles, where it is given some.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

USER = "system:serviceaccount:team-a:rco"
TOKEN = "canary-token-7f31"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?"
)


class RefusalError(Exception):
    """An answer of the kind Status."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": dict(details or {}),
            "code": code,
        }


@dataclass(frozen=True)
class Request:
    """What was asked: as a Role has it, and what was sent."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    dry_run: bool = False
    body: Any = field(default=None, repr=False)


@dataclass
class KubeStub:
    """Attributes:
    objects: by path.
    rights: rules of Roles by namespace ("": of ClusterRoles); None: everything is allowed.
    admit: raises a `RefusalError` for a pod that is not admitted.
    lives: statuses of a pod that is made, one a look; the last one stays.
    log: of a pod that is made.
    known: whether the login is known.
    faults: by verb: how many requests get no answer.
    """

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    rights: dict[str, list[dict[str, Any]]] | None = None
    admit: Callable[[dict[str, Any]], None] = lambda pod: None
    lives: Sequence[dict[str, Any]] = ({"phase": "Succeeded"},)
    log: str = ""
    known: bool = True
    faults: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    looks: int = 0
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, document: Mapping[str, Any]) -> None:
        """An object, at its path."""
        plural = {"Deployment": "apis/apps/v1", "default": "api/v1"}
        kind, metadata = document["kind"], document["metadata"]
        root = plural.get(kind, plural["default"])
        where = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        self.objects[f"/{root}{where}/{kind.lower()}s/{metadata['name']}"] = dict(document)

    def remove(self, path: str) -> None:
        """An object that is there."""
        del self.objects[path]

    def allow(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Judge by these Roles and ClusterRoles, all of which are bound to whoever asks."""
        self.rights = {}
        for document in documents:
            if document["kind"] in ("Role", "ClusterRole"):
                self.rights.setdefault(document["metadata"].get("namespace", ""), []).extend(document["rules"])

    def pods(self) -> list[str]:
        """Paths of the pods that are there."""
        return [path for path in self.objects if "/pods/" in path]

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        """What a request gets."""
        parts = urlsplit(url)
        if not self.known:
            raise RefusalError(401, "Unauthorized", "Unauthorized")
        if parts.path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.1"}
        match = _PATH.fullmatch(parts.path)
        if match is None and parts.path.startswith("/api/v1/namespaces/"):
            name = parts.path.rpartition("/")[2]
            asked = Request("get", "", "namespaces", "", name)
        else:
            assert match, url
            resource = match["resource"] + (f"/{match['sub']}" if match["sub"] else "")
            verb = {"GET": "get" if match["name"] else "list", "POST": "create", "DELETE": "delete"}[method]
            dry = parse_qs(parts.query).get("dryRun") == ["All"]
            asked = Request(verb, match["group"] or "", resource, match["namespace"] or "", match["name"] or "", dry, body)
        with self._lock:
            self.requests.append(asked)
            self._authorise(asked)
            return self._act(asked, parts.path, parse_qs(parts.query))

    def _authorise(self, asked: Request) -> None:
        if self.rights is None:
            return
        for rule in [*self.rights.get(asked.namespace, ()), *self.rights.get("", ())]:
            named = not rule.get("resourceNames") or asked.name in rule["resourceNames"]
            if (
                asked.group in rule["apiGroups"]
                and asked.resource in rule["resources"]
                and asked.verb in rule["verbs"]
                and named
            ):
                return
        named = f' "{asked.name}"' if asked.name else ""
        where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        message = (
            f'{asked.resource.partition("/")[0]}{named} is forbidden: User "{USER}" cannot {asked.verb} resource '
            f'"{asked.resource}" in API group "{asked.group}" {where}'
        )
        raise RefusalError(403, "Forbidden", message, {"name": asked.name, "kind": asked.resource})

    def _act(self, asked: Request, path: str, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        if asked.verb == "list":
            items = [document for where, document in self.objects.items() if where.rpartition("/")[0] == path]
            return 200, {"kind": "List", "apiVersion": "v1", "items": items}
        if asked.verb == "create":
            self.admit(asked.body)
            if not asked.dry_run:
                self.objects[f"{path}/{asked.body['metadata']['name']}"] = asked.body
            return 201, asked.body
        bare = path.removesuffix("/log")
        if bare not in self.objects:
            kind = asked.resource.partition("/")[0]
            message = f'{kind} "{asked.name}" not found'
            raise RefusalError(404, "NotFound", message, {"name": asked.name, "kind": kind})
        if asked.verb == "delete":
            assert query.get("gracePeriodSeconds") == ["0"]
            return 200, self.objects.pop(bare)
        if asked.resource == "pods/log":
            return 200, self.log
        if asked.resource == "pods":
            status = self.lives[min(self.looks, len(self.lives) - 1)]
            self.looks += 1
            return 200, {**self.objects[bare], "status": status}
        return 200, self.objects[bare]

    @contextmanager
    def listening(self, folder: Path) -> Iterator[Path]:
        """It answers; gives the path of a kubeconfig for it."""

        def handle(handler: BaseHTTPRequestHandler) -> None:
            method = handler.command
            size = int(handler.headers.get("Content-Length") or 0)
            body = json.loads(handler.rfile.read(size)) if size else None
            if self.faults.get(method, 0) > 0:
                self.faults[method] -= 1
                handler.close_connection = True
                return
            try:
                status, answer = self.answer(method, handler.path, body)
            except RefusalError as refusal:
                status, answer = refusal.code, refusal.body
            text = answer if isinstance(answer, str) else json.dumps(answer)
            _send(handler, status, text, "text/plain" if isinstance(answer, str) else "application/json")

        with _serving(handle) as port:
            self.port = port
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "stub",
                "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
                "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "stub", "user": {"token": TOKEN}}],
            }
            path = folder / "kubeconfig"
            path.write_text(yaml.safe_dump(config))
            yield path


@dataclass
class RegistryStub:
    """A registry that gives tokens, as Docker's specification of them says.

    Attributes:
        images: manifests by "repository:version".
        logins: user -> password of those who may read.
        public: nobody needs a login.
        basic: logins are sent with every request; there are no tokens.
    """

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    logins: dict[str, str] = field(default_factory=dict)
    public: bool = False
    basic: bool = False
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """It answers; gives its host."""
        with _serving(self._handle) as port:
            self.port = port
            yield f"127.0.0.1:{port}"

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        self.asked.append(parts.path)
        authorization = handler.headers.get("Authorization", "")
        known = any(authorization == _basic(user, password) for user, password in self.logins.items())
        if parts.path == "/token":
            assert parse_qs(parts.query)["service"] == ["stub"]
            if authorization and not known:
                return _error(handler, 401, "UNAUTHORIZED", "incorrect username or password")
            scope = parse_qs(parts.query)["scope"][0]
            return _send(handler, 200, json.dumps({"token": f"{'read' if known or self.public else 'none'} {scope}"}))
        match = re.fullmatch(r"/v2/(?P<name>.+)/manifests/(?P<version>.+)", parts.path)
        assert match
        scope = f"repository:{match['name']}:pull"
        if self.basic and not known:
            return _error(handler, 401, "UNAUTHORIZED", "authentication required", 'Basic realm="stub"')
        if not self.basic and not authorization.startswith("Bearer "):
            challenge = f'Bearer realm="http://127.0.0.1:{self.port}/token",service="stub",scope="{scope}"'
            return _error(handler, 401, "UNAUTHORIZED", "authentication required", challenge)
        if not self.basic and authorization != f"Bearer read {scope}":
            return _error(handler, 403, "DENIED", "requested access to the resource is denied")
        found = self.images.get(f"{match['name']}:{match['version']}")
        if found is None:
            return _error(handler, 404, "MANIFEST_UNKNOWN", "manifest unknown")
        assert "application/vnd.oci.image.manifest.v1+json" in handler.headers["Accept"]
        return _send(handler, 200, json.dumps(found), "application/vnd.oci.image.manifest.v1+json")


def pull_secret(name: str, namespace: str, **logins: tuple[str, str]) -> dict[str, Any]:
    """A Secret as kubectl create secret docker-registry makes it; registry -> user and password."""
    auths = {
        registry: {"username": user, "password": password, "auth": _basic(user, password).removeprefix("Basic ")}
        for registry, (user, password) in logins.items()
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": encoded(json.dumps({"auths": auths}))},
    }


def encoded(text: str) -> str:
    """A value of a Secret."""
    return base64.b64encode(text.encode()).decode()


def _basic(user: str, password: str) -> str:
    return f"Basic {encoded(f'{user}:{password}')}"


def _error(handler: BaseHTTPRequestHandler, status: int, code: str, message: str, challenge: str = "") -> None:
    text = json.dumps({"errors": [{"code": code, "message": message, "detail": None}]})
    _send(handler, status, text, challenge=challenge)


def _send(handler: BaseHTTPRequestHandler, status: int, text: str, kind: str = "application/json", challenge: str = "") -> None:
    content = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    if challenge:
        handler.send_header("WWW-Authenticate", challenge)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def _serving(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            handle(self)

        do_POST = do_DELETE = do_GET  # noqa: N815 (names of http.server)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something comes to be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
