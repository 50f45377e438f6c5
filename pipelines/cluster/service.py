"""A Kubeflow Pipelines service: reached through KFP's own client, its troubles told in words and without secrets.

Who we are comes from the environment, in the variables that KFP's own command line and client read, and from KFP's
`~/.config/kfp/context.json`. Secrets are no options of a command: other users see those in the list of processes.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import kfp
import kfp_server_api
import urllib3
from kfp import client as kfp_client
from urllib3 import exceptions as trouble

from pipelines.cluster.access import SIGN_IN, VARIABLES, credential_of, endpoint_of, expiry_of, in_kubernetes, token_file_of
from rco.core.errors import InputError

T = TypeVar("T")

#: The first KFP whose nested pipelines hand on artifacts, as the stages and branches of ours do.
OLDEST = (2, 5)
_SECRET = ("existing_token", "other_client_secret", "cookies", "proxy")
_LOG_END = 2**18  # of a log; what went wrong is at its end
_TIMEOUT = (10, 60)  # seconds to connect, and between two parts of an answer


class ServiceError(RuntimeError):
    """The service cannot be reached, does not let us in, or refuses what it was sent.

    Attributes:
        status: of HTTP; 0 if there was no answer, 401 also for a sign-in page in place of one.
        passing: whether the same request may succeed later.
    """

    def __init__(self, message: str, *, status: int = 0, passing: bool = False) -> None:
        super().__init__(message)
        self.status, self.passing = status, passing


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to ask, in seconds.

    Attributes:
        first: pause after the first question; pauses grow by half.
        longest: where they stop growing.
        patience: how long trouble that may pass is put up with.
    """

    first: float = 1.0
    longest: float = 15.0
    patience: float = 30.0

    def pauses(self) -> Iterator[float]:
        """Pauses without end; half of each is chance, so that many clients do not come back at once."""
        pause = self.first
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(pause * 1.5, self.longest)


ASK = Pace()


class _Client(kfp.Client):  # type: ignore[misc]
    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        # KFP's constructor asks only to look for a namespace, which `Service` does; and it would try for 25 s and log
        # whole answers.
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

    @property
    def api(self) -> Any:
        return self._healthz_api.api_client

    @property
    def context(self) -> dict[str, Any]:
        return dict(self._context_setting)


class Service:
    """An open door to KFP's API.

    Attributes:
        address: of the service, for people; empty if it is found through Kubernetes.
        multi_user: whether it serves namespaces, each with its own runs.
        namespace: that runs are made in; empty on a service of one user.
        version: of the service ("2.5.0"), if it tells.
        client: KFP's.
    """

    def __init__(self, endpoint: str | None = None, namespace: str | None = None, *, pace: Pace | None = None) -> None:
        """Connect.

        Args:
            endpoint: address; without one KFP_ENDPOINT, KF_PIPELINES_ENDPOINT, and what KFP's client finds by itself: the
                service of the cluster that this process runs in, or that of the current kubectl context.
            namespace: without one KFP_NAMESPACE, the one of KFP's context file, and the one of the pod.

        Raises:
            InputError: no address, or settings that cannot be.
            ServiceError: it cannot be reached or does not let us in.
        """
        environment = os.environ
        self.pace = pace or ASK
        self._endpoint = endpoint_of(endpoint or environment.get("KFP_ENDPOINT") or environment.get("KF_PIPELINES_ENDPOINT"))
        self.address = self._endpoint or ""
        self._secrets: set[str] = set()
        self.client = self._connect(environment)
        health = self._health()
        self.multi_user = bool(health.get("multi_user"))
        self.version = next((str(health[k]) for k in ("apiServerTagName", "tag_name", "frontendTagName") if health.get(k)), "")
        self._check_version()
        self.namespace = self._namespace(namespace or environment.get("KFP_NAMESPACE"))

    def link(self, what: str) -> str:
        """Where the UI shows something: "runs/details/ID"; empty: that is not known, as in a pod."""
        ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or self.address
        return f"{ui.rstrip('/')}/#/{what}" if ui else ""

    def renew(self) -> None:
        """Sign in again: tokens and cookies that lie in files, or that are fetched, may have been renewed."""
        self.client = self._connect(os.environ)

    def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of the API once.

        Raises:
            ServiceError: for whatever goes wrong.
        """
        try:
            answer = method(**arguments, _request_timeout=_TIMEOUT)
        except Exception as error:
            raise self._explain(error) from None
        response = self.client.api.last_response
        if _json(response.data) is None:
            raise self._page(response)
        return answer

    def log(self, run_id: str, node: str) -> str:
        """The log of a pod of a run, by the id of its node in the workflow; of a long one its end.

        Raises:
            ServiceError: it is not there (any more), or cannot be had.
        """
        path = f"/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(node)}/log"
        api = self.client.api
        try:
            api.call_api(path, "GET", auth_settings=["Bearer"], _request_timeout=_TIMEOUT)
        except Exception as error:
            raise self._explain(error) from None
        if str(api.last_response.data).lstrip()[:1] == "<":
            raise self._page(api.last_response)
        return self.clean(str(api.last_response.data)[-_LOG_END:])

    def ask(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """Call a method of the API that may be called twice, until trouble has passed or patience has ended."""
        return self.persist(lambda: self.call(method, **arguments))

    def persist(self, action: Callable[[], T]) -> T:
        """Do something until it meets no trouble, or trouble that will not pass, or patience has ended."""
        end = time.monotonic() + self.pace.patience
        for pause in self.pace.pauses():
            try:
                return action()
            except ServiceError as error:
                if not error.passing or time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
        raise AssertionError("pauses do not end")

    def pages(self, method: Callable[..., Any], field: str, **arguments: Any) -> Iterator[Any]:
        """All that a listing has, page by page."""
        token = ""
        while True:
            answer = self.ask(method, page_token=token, page_size=100, **arguments)
            yield from getattr(answer, field) or ()
            token = answer.next_page_token or ""
            if not token:
                return

    def clean(self, text: str) -> str:
        """Text without what must not be seen."""
        config = getattr(self, "client", None) and self.client.api.configuration
        known = {*self._secrets, *(config.api_key.values() if config else ())}
        for secret in sorted(known, key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, "***")
        return text

    def _connect(self, environment: Mapping[str, str]) -> _Client:
        given = {name: environment[variable].strip() for name, variable in VARIABLES.items() if environment.get(variable)}
        for name, value in given.items():
            if not value.isprintable() or not value.isascii():
                raise InputError(VARIABLES[name], "(hidden)", "has characters that no HTTP header may have", "Set it again")
        for name in _SECRET:
            self._hide(given.get(name, ""))
        certificate = given.get("ssl_ca_cert")
        if certificate and not Path(certificate).is_file():
            raise InputError(VARIABLES["ssl_ca_cert"], certificate, "is not a file", "Name the CA's certificate in PEM form")
        if not self._endpoint and not in_kubernetes(environment):
            raise InputError("endpoint", "", "is not set", "Give --endpoint, or set KFP_ENDPOINT: http://localhost:8080")
        verify = environment.get("KFP_VERIFY_SSL", "").lower() not in ("0", "false", "no")
        if not verify:
            urllib3.disable_warnings(trouble.InsecureRequestWarning)
        token_file = token_file_of(environment)
        credentials = None
        if token_file is not None and "existing_token" not in given and "client_id" not in given:
            credentials = kfp_client.ServiceAccountTokenVolumeCredentials(str(token_file))
        self._credential = credential_of(given, token_file if credentials else None)
        self._token = given.get("existing_token", "")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                client = _Client(host=self._endpoint, credentials=credentials, verify_ssl=verify, **given)
        except Exception as error:
            reason = self.clean(f"{type(error).__name__}: {error}")
            raise ServiceError(f"KFP's client could not be set up ({reason}). {SIGN_IN}") from None
        context = client.context
        for name in ("client_authentication_cookie", "client_authentication_header_value"):
            self._hide(str(context.get(name) or ""))
            if context.get(name) and self._credential == "":
                self._credential = f"what {client._LOCAL_KFP_CONTEXT} says"
        return client

    def _hide(self, secret: str) -> None:
        """Remember a secret, and the parts of it that are as good: values of cookies, a proxy's password."""
        self._secrets |= {secret, *(part.split("=", 1)[-1].strip() for part in secret.split(";"))} - {""}
        with_password = re.search(r"//([^/@]+)@", secret)
        if with_password:
            self._secrets |= {with_password[1], with_password[1].partition(":")[2]} - {""}

    def _health(self) -> dict[str, Any]:
        try:
            self.call(self.client.healthzs.healthz_service_get_healthz)
        except ServiceError as error:
            if error.status != 404:
                raise
            raise ServiceError(
                f"{self._where()} answers, but knows no /apis/v2beta1/healthz: it is not KFP's API, or KFP is older than 2.0. "
                "On Kubeflow the address ends in /pipeline; on KFP alone it is that of ml-pipeline-ui or ml-pipeline",
                status=404,
            ) from None
        health = _json(self.client.api.last_response.data)
        if not isinstance(health, dict):
            raise ServiceError(f"{self._where()} answers, but not as KFP's API does. Check the address", status=404)
        if health.get("apiServerReady") is False:
            raise ServiceError(
                f"KFP's UI at {self._where()} answers, but not the API server behind it. Look at the pod ml-pipeline",
                status=503,
                passing=True,
            )
        return health

    def _check_version(self) -> None:
        if self.older_than((2, 0)):
            raise ServiceError(
                f"KFP {self.version} at {self._where()} is too old: packages of KFP {kfp.__version__} need a service of KFP 2. "
                "Upgrade it",
                status=404,
            )

    def older_than(self, version: tuple[int, int]) -> bool:
        """Whether the service says that it is; one that tells no version is not."""
        numbers = re.match(r"v?(\d+)\.(\d+)", self.version)
        return bool(numbers) and (int(numbers[1]), int(numbers[2])) < version  # type: ignore[index]

    def _namespace(self, given: str | None) -> str:
        if not self.multi_user:
            return ""  # such a service refuses requests that name one
        pod = Path(self.client._NAMESPACE_PATH)
        found = given or self.client.context.get("namespace") or (pod.read_text().strip() if pod.is_file() else "")
        if not found:
            raise InputError(
                "namespace",
                "",
                "is not set, and this KFP serves several",
                "Give --namespace, or set KFP_NAMESPACE: your profile's",
            )
        return str(found)

    def _where(self) -> str:
        return self.address or self.client.api.configuration.host

    def _explain(self, error: Exception) -> ServiceError:
        """An exception of KFP's client, in words."""
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (kfp_server_api.ApiException, trouble.HTTPError)):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, kfp_server_api.ApiException):
            if cause.status:
                return self._refusal(int(cause.status), cause.body)
            return self._unreachable(str(cause.reason))
        if isinstance(cause, trouble.HTTPError):
            return self._unreachable(f"{type(getattr(cause, 'reason', None) or cause).__name__} {cause}")
        # Its text may hold anything: Python names the header that it could not send, with its value.
        return ServiceError(f"asking {self._where()} failed with {type(error).__name__}")

    def _unreachable(self, text: str) -> ServiceError:
        where, low = self._where(), text.lower()
        if "ssl" in low or "certificate" in low:
            if "wrong_version_number" in low or "record layer" in low:
                return ServiceError(f"{where} does not speak TLS. Write the address with http://")
            if "certificate" in low:
                reason = re.search(r"certificate verify failed: ([^(\[]+)", text)
                return ServiceError(
                    f"the certificate of {where} is not trusted ({reason[1].strip() if reason else 'TLS'}). "
                    "Set KFP_SSL_CA_CERT to the file of the CA that signed it, or write the address with the name in it"
                )
            return ServiceError(
                f"TLS with {where} failed: {self.clean(text.splitlines()[-1])}. Check the address", passing=True
            )
        if "proxyerror" in low or "unable to connect to proxy" in low:
            return ServiceError("the proxy that KFP_PROXY names cannot be reached or refuses. Check it", passing=True)
        if "nameresolution" in low or "failed to resolve" in low:
            return ServiceError(f"there is no host of this name: {where}. Check the address; is the VPN on?", passing=True)
        if "refused" in low:
            why = "nothing listens there. Is the port-forward running?"
        elif "unreachable" in low or "no route" in low:
            why = "there is no route to it. Is the VPN on?"
        elif "connecttimeout" in low or "connection to" in low:
            why = f"no connection within {_TIMEOUT[0]} s. Is a firewall between, or the VPN off?"
        elif "readtimeout" in low or "read timed out" in low:
            why = f"no answer within {_TIMEOUT[1]} s"
        else:
            why = "the connection was lost"
        return ServiceError(f"cannot reach {where}: {why}", passing=True)

    def _refusal(self, status: int, body: Any) -> ServiceError:
        where, refusal = self._where(), self.clean(_message(body))
        quoted = f" ({refusal})" if refusal else ""
        # The upload API answers 400 also to those whom it does not know.
        if status == 401 or (status == 400 and "authenticat" in refusal.lower()):
            return ServiceError(f"{where} does not know who we are{quoted}. {self._why_unknown()}", status=401)
        if status == 403 or (status == 400 and "authoriz" in refusal.lower()):
            place = f" in namespace {self.namespace}" if getattr(self, "namespace", "") else ""
            return ServiceError(
                f"{where} does not allow this{place}{quoted}. {self._why_unknown()}; or ask its administrator for the role "
                "kubeflow-edit there",
                status=403,
            )
        if status == 400 and "http request to an https server" in refusal.lower():
            return ServiceError(f"{where} speaks TLS only. Write the address with https://", status=400)
        if status in (408, 429) or status >= 500:
            return ServiceError(f"{where} has trouble: HTTP {status}{quoted}", status=status, passing=True)
        return ServiceError(f"{where} refuses: HTTP {status}{quoted}", status=status)

    def _why_unknown(self) -> str:
        if not self._credential:
            return f"No credentials were sent. {SIGN_IN}"
        expiry = expiry_of(self._token)
        if expiry is not None and expiry < time.time():
            return f"{self._credential} expired on {time.strftime('%Y-%m-%d %H:%M', time.localtime(expiry))}: get a new one"
        return f"{self._credential} may have expired, or be meant for another service"

    def _page(self, response: Any) -> ServiceError:
        parts = urlsplit(str(response.urllib3_response.geturl() or ""))
        there = self.clean(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))
        if "kubeflow pipelines" in str(response.data).lower():
            return ServiceError(
                f"{self._where()} answered with KFP's UI where its API should be: KFP is older than 2.0, or the address has "
                "too long a path. Check it",
            )
        return ServiceError(
            f"{self._where()} answered with a web page in place of the API ({there}): it wants us to sign in. "
            f"{self._why_unknown()}",
            status=401,
        )


def _json(text: Any) -> Any:
    """The JSON that an answer is; None if it is something else."""
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def _message(body: Any) -> str:
    """What a refusal says, in one line: KFP's APIs have two forms of it, and gateways have pages."""
    content = _json(body)
    if isinstance(content, dict):
        text = str(content.get("message") or content.get("error_message") or content.get("error") or "")
    else:
        text = "" if "<" in str(body or "")[:200] else str(body or "")
    return " ".join(text.split())[:500]
