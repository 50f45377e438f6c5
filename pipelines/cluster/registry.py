"""Whether an image is in its registry, with the rights of a pull secret: its manifest, by the registry's HTTP API V2.

Docs: the OCI distribution specification, and Docker's "Token Authentication Specification". What is sent to a registry are the
credentials that a pull secret has for it; nothing of these is ever shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rco.core.errors import InputError, why_unreachable

#: What can come of a look.
THERE, ABSENT, REFUSED, AWAY = "there", "absent", "refused", "away"
_TIMEOUT = (5, 20)
_HUB = "registry-1.docker.io"
_ACCEPT = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_PARAMETER = re.compile(r'([a-zA-Z]+)="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image's name, in its parts.

    Attributes:
        registry: host, perhaps with a port; empty: none is named, which is Docker Hub.
        repository: path in the registry.
        version: tag or digest.
    """

    registry: str
    repository: str
    version: str

    @classmethod
    def of(cls, image: str) -> Reference:
        """A reference such as registry.example.com/team/rco-python@sha256:...; its form is not checked."""
        name, _, digest = image.partition("@")
        first, slash, rest = name.partition("/")
        named = bool(slash) and ("." in first or ":" in first or first == "localhost")
        registry, path = (first, rest) if named else ("", name)
        path, colon, tag = path.rpartition(":")
        path, tag = (path, tag) if colon else (tag, "latest")
        return cls(registry=registry, repository=path, version=digest or tag)

    @property
    def address(self) -> str:
        """Of the manifest."""
        host = self.registry if self.registry not in ("", "docker.io", "index.docker.io") else _HUB
        repository = self.repository if host != _HUB or "/" in self.repository else f"library/{self.repository}"
        scheme = "http" if urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1", "::1") else "https"
        return f"{scheme}://{host}/v2/{repository}/manifests/{self.version}"


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a pull secret says of a registry.

    Attributes:
        secret: its name.
        registry: that it is for, as it is written there.
        user, password: sent to that registry.
    """

    secret: str
    registry: str
    user: str = field(repr=False)
    password: str = field(repr=False)

    def fits(self, reference: Reference) -> bool:
        """Whether it is for this image: by host, and by the beginning of its path where it has one."""
        host, _, path = re.sub(r"^https?://", "", self.registry).partition("/")
        hub = ("", "docker.io", "index.docker.io", _HUB)
        if host in hub and reference.registry in hub:
            return True
        path = re.sub(r"^v[12](/|$)", "", path).strip("/")
        pattern = re.escape(host).replace(r"\*", "[^.]*")
        inside = not path or f"{reference.repository}/".startswith(f"{path}/")
        return bool(re.fullmatch(pattern, reference.registry)) and inside


def logins(secret: str, document: Mapping[str, Any]) -> list[Login]:
    """The logins of a Secret of the type kubernetes.io/dockerconfigjson, or the older .../dockercfg.

    Args:
        secret: its name.
        document: it, as the API gives it.

    Raises:
        InputError: it is not such a Secret.
    """
    data = document.get("data") or {}
    remedy = f"Make it with kubectl create secret docker-registry {secret}"
    try:
        if ".dockerconfigjson" in data:
            auths = json.loads(base64.b64decode(data[".dockerconfigjson"]))["auths"]
        else:
            auths = json.loads(base64.b64decode(data[".dockercfg"]))
        return [
            Login(secret=secret, registry=registry, user=user, password=password)
            for registry, given in auths.items()
            for user, password in [_credentials(given)]
        ]
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error):
        raise InputError("image_pull_secrets", secret, "holds no credentials of a registry", remedy) from None


def _credentials(given: Mapping[str, str]) -> tuple[str, str]:
    if given.get("username") and given.get("password"):
        return given["username"], given["password"]
    user, _, password = base64.b64decode(given["auth"]).decode().partition(":")
    return user, password


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a registry said of an image.

    Attributes:
        outcome: THERE, ABSENT, REFUSED (as this login, or without one) or AWAY.
        facts: in words.
        login: with which it was asked at last; None: without one.
    """

    outcome: str
    facts: str
    login: Login | None = None


def look(reference: Reference, given: Iterable[Login] = ()) -> Found:
    """Ask a registry for an image's manifest: with the logins that fit, else without one. Never raises for what it answers."""
    import requests

    # The longest path is the most special one.
    fitting = sorted((login for login in given if login.fits(reference)), key=lambda login: -len(login.registry))
    found = Found(outcome=AWAY, facts="")
    with requests.Session() as session:
        session.trust_env = True
        tried: list[Login | None] = [*fitting] or [None]
        for login in tried:
            try:
                found = _ask(session, reference, login)
            except requests.RequestException as error:
                return Found(outcome=AWAY, facts=f"cannot be reached from here ({why_unreachable(error)})", login=login)
            if found.outcome != REFUSED:
                break
    return found


def _ask(session: Any, reference: Reference, login: Login | None) -> Found:
    headers = {"Accept": _ACCEPT}
    answer = session.get(reference.address, headers=headers, timeout=_TIMEOUT, auth=_nobody)
    challenge = answer.headers.get("WWW-Authenticate", "")
    if answer.status_code == 401 and challenge:
        scheme, _, rest = challenge.partition(" ")
        asked = dict(_PARAMETER.findall(rest))
        if scheme.lower() == "basic":
            if login is None:
                return Found(outcome=REFUSED, facts="asks for a login")
            answer = session.get(reference.address, headers=headers, timeout=_TIMEOUT, auth=(login.user, login.password))
        elif scheme.lower() == "bearer":
            token, problem = _token(session, reference, asked, login)
            if not token:
                return Found(outcome=REFUSED, facts=problem, login=login)
            headers["Authorization"] = f"Bearer {token}"
            answer = session.get(reference.address, headers=headers, timeout=_TIMEOUT, auth=_nobody)
    return _judge(answer, login)


def _nobody(request: Any) -> Any:
    """No credentials: `requests` would take some from ~/.netrc."""
    return request


def _token(session: Any, reference: Reference, asked: Mapping[str, str], login: Login | None) -> tuple[str, str]:
    """A token for reading an image from where the registry says; or the problem."""
    realm = asked.get("realm", "")
    secure = realm.startswith("https://") or (realm.startswith("http://") and reference.address.startswith("http://"))
    if not secure:
        return "", "names no address that a login may be sent to"
    query = {"scope": asked.get("scope") or f"repository:{reference.repository}:pull"}
    if "service" in asked:
        query["service"] = asked["service"]
    auth = (login.user, login.password) if login else _nobody
    answer = session.get(realm, params=query, timeout=_TIMEOUT, auth=auth)
    if answer.status_code in (401, 403):
        return "", "does not take this login" if login else "asks for a login"
    try:
        document = answer.json()
        token = str(document.get("token") or document.get("access_token") or "")
    except (ValueError, AttributeError):
        token = ""
    return token, "" if token else f"gives no token (status {answer.status_code})"


def _judge(answer: Any, login: Login | None) -> Found:
    status = answer.status_code
    if status == 200:
        try:
            layers = answer.json().get("layers") or ()
            size = sum(int(layer["size"]) for layer in layers)
        except (ValueError, TypeError, KeyError, AttributeError):
            size = 0
        return Found(outcome=THERE, facts=f"{size / 1e9:.1f} GB to pull" if size else "", login=login)
    if status == 404:
        return Found(outcome=ABSENT, facts="does not have it", login=login)
    if status in (401, 403):
        facts = "does not let this login read it" if login else "asks for a login"
        return Found(outcome=REFUSED, facts=facts, login=login)
    return Found(outcome=AWAY, facts=f"answers {status}", login=login)
