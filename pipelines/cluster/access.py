"""Where a Kubeflow Pipelines service is, and with what we say who we are."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from kfp import client as kfp_client

from rco.core.errors import InputError

#: Argument of KFP's client -> the variable that gives it. The first four are those of KFP's command line.
VARIABLES = {
    "existing_token": "KFP_EXISTING_TOKEN",
    "client_id": "KFP_IAP_CLIENT_ID",
    "other_client_id": "KFP_OTHER_CLIENT_ID",
    "other_client_secret": "KFP_OTHER_CLIENT_SECRET",
    "cookies": "KFP_COOKIES",
    "proxy": "KFP_PROXY",
    "ssl_ca_cert": "KFP_SSL_CA_CERT",
    "kube_context": "KFP_KUBE_CONTEXT",
}
SIGN_IN = (
    "Set KFP_EXISTING_TOKEN (a bearer token) or KFP_COOKIES (the session's cookie, from your browser: "
    "'oauth2_proxy_kubeflow=...' or 'authservice_session=...')"
)


def endpoint_of(text: str | None) -> str | None:
    """An address as KFP's client wants it: the UI's links may be pasted."""
    if not text:
        return None
    address = text.strip().partition("#")[0]
    # KFP's client takes what has no scheme for https.
    parts = urlsplit(address if "://" in address else f"https://{address}")
    try:
        port_is_a_number = parts.port is None or parts.port > 0
    except ValueError:
        port_is_a_number = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_a_number or not address.isascii():
        raise InputError(
            "endpoint", "(hidden)" if "@" in address else text, "is not an address", "Give http(s)://host[:port][/path]"
        )
    if "@" in parts.netloc:
        raise InputError("endpoint", "(hidden)", "holds a name or a password, which KFP's client does not send", SIGN_IN)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def in_kubernetes(environment: Mapping[str, str]) -> bool:
    """Whether this is a pod, or kubectl knows a cluster."""
    files = environment.get("KUBECONFIG") or "~/.kube/config"
    return "KUBERNETES_SERVICE_HOST" in environment or any(
        Path(name).expanduser().is_file() for name in files.split(os.pathsep) if name
    )


def token_file_of(environment: Mapping[str, str]) -> Path | None:
    """The file with the token of this pod's service account, if there is one.

    Raises:
        InputError: the environment names a file that is not there.
    """
    named = environment.get(kfp_client.KF_PIPELINES_SA_TOKEN_ENV)
    path = Path(named or kfp_client.KF_PIPELINES_SA_TOKEN_PATH)
    if path.is_file():
        return path
    if named:
        raise InputError(
            kfp_client.KF_PIPELINES_SA_TOKEN_ENV, named, "is not a file", "Mount a service account's token there, or unset it"
        )
    return None


def credential_of(given: Mapping[str, str], token_file: Path | None) -> str:
    """What we say who we are with, for people."""
    if "existing_token" in given:
        return f"The token in {VARIABLES['existing_token']}"
    if "client_id" in given or os.environ.get("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID"):
        return "The sign-in for the IAP client"
    if token_file is not None:
        return f"The service account's token in {token_file}"
    return f"The cookie in {VARIABLES['cookies']}" if "cookies" in given else ""


def expiry_of(token: str) -> float | None:
    """When a JSON web token expires (seconds since 1970), if it is one and tells."""
    try:
        payload = token.split(".")[1]
        expiry = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        return float(expiry)
    except (IndexError, KeyError, ValueError, TypeError):
        return None
