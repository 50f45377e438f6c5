"""Kubernetes' API, as the user's kubectl context or this pod's service account reaches it, and its refusals in words."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from rco.core.errors import why_unreachable

#: Seconds to connect, and to be answered.
TIMEOUT = (5, 15)
#: Kinds of trouble (`KubeError.kind`).
MISSING, DENIED, UNKNOWN_LOGIN, AWAY, REFUSED = "missing", "denied", "unknown login", "away", "refused"


_NO_RIGHT = re.compile(r'User "[^"]*" cannot \w+ resource')


class KubeError(Exception):
    """Kubernetes did not do what it was asked.

    Attributes:
        kind: MISSING (no such object), DENIED (this login has no right to it), UNKNOWN_LOGIN, AWAY (no answer), or REFUSED (the
            request itself: by admission, a quota, as invalid).
        words: Kubernetes' own message on one line, which holds names and no values; or ours.
    """

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind, self.words = kind, words


def api_client() -> Any:
    """A client for the cluster of this pod, or of the kubectl context (KFP_KUBE_CONTEXT, else the current one). Raises what the
    library raises where there is none."""
    from kubernetes import client, config

    configuration = client.Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        config.load_kube_config(
            config_file=os.environ.get("KUBECONFIG") or None,  # the library looks at it only when it is imported
            context=os.environ.get("KFP_KUBE_CONTEXT") or None,
            client_configuration=configuration,
        )
    configuration.retries = False  # somebody waits, and can ask again
    return client.ApiClient(configuration)


class Kube:
    """One cluster.

    Attributes:
        client: of the library, for its typed interfaces.
        host: address of the API server.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.host: str = client.configuration.host

    @classmethod
    def connect(cls) -> Kube:
        """The cluster of `api_client`.

        Raises:
            KubeError: there is no context, or it cannot be read.
        """
        try:
            return cls(api_client())
        except Exception as error:  # a file that is damaged, a context that is not there, a plug-in that cannot log in
            name = os.environ.get("KFP_KUBE_CONTEXT")
            which = f"the kubectl context {name}" if name else "a kubectl context"
            raise KubeError(AWAY, f"{which} cannot be read ({type(error).__name__})") from None

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """An object or a list, as JSON.

        Raises:
            KubeError: it cannot be had.
        """
        found: dict[str, Any] = self._ask("GET", path, query)
        return found

    def try_to_create(self, path: str, body: dict[str, Any]) -> None:
        """Have an object admitted and forgotten (a dry run of the server).

        Raises:
            KubeError: it would not be made.
        """
        self._ask("POST", path, {"dryRun": "All"}, body)

    def create(self, path: str, body: dict[str, Any]) -> None:
        """Make an object.

        Raises:
            KubeError: it was not made, or nobody knows.
        """
        self._ask("POST", path, {}, body)

    def delete(self, path: str) -> None:
        """Remove an object, at once; one that is not there is no error.

        Raises:
            KubeError: it was not removed, or nobody knows.
        """
        try:
            self._ask("DELETE", path, {"gracePeriodSeconds": 0})
        except KubeError as error:
            if error.kind != MISSING:
                raise

    def log(self, namespace: str, pod: str) -> str:
        """The end of a pod's log.

        Raises:
            KubeError: it cannot be had.
        """
        return str(self._ask("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log", {"tailLines": 2000}, kind="str"))

    def _ask(self, method: str, path: str, query: dict[str, Any], body: Any = None, kind: str = "object") -> Any:
        from kubernetes.client import ApiException

        try:
            return self.client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
                body=body,
                response_type=kind,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
        except ApiException as error:
            raise _refusal(error.status, error.body) from None
        except Exception as error:  # no connection, or what is there does not speak as Kubernetes does
            raise KubeError(AWAY, f"{_host(self.host)} cannot be asked ({why_unreachable(error)})") from None


def _refusal(status: int, body: Any) -> KubeError:
    """The error of an answer: an object of the kind Status, or what a proxy says."""
    try:
        answer = json.loads(body)
        told = answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}
    except (TypeError, ValueError):
        told = {}
    words = " ".join(str(told.get("message") or f"status {status}").split())[:500]
    if status == 401:
        return KubeError(UNKNOWN_LOGIN, words)
    if status == 404 and (told.get("details") or {}).get("name"):  # without a name it is the path that is unknown
        return KubeError(MISSING, words)
    # Admission and quotas refuse with 403 as well; what the login lacks is said as "User ... cannot VERB ...".
    if status == 403 and (_NO_RIGHT.search(words) or not told):
        return KubeError(DENIED, words)
    if status == 404 or status >= 500 or not told:
        return KubeError(AWAY, words)
    return KubeError(REFUSED, words)


def _host(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else address
