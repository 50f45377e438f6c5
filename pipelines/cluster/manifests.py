"""Manifests of what tasks need in their namespace: Secrets, ConfigMaps, claims, rights, and MLflow's server.

The texts lie beside this module (`kubernetes/*.yaml`); names and keys are those of the deployment file. Nothing in them is a
secret: of Secrets they have the keys, and the commands with which kubectl fills them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from pipelines.cluster.deployment import Deployment, Source, Volume
from rco.core.errors import InputError, choice
from rco.core.settings import has_credentials

#: What can be printed, in its order. Without names all of `USUAL`, and `mlflow` where it is asked for.
PARTS = ("credentials", "settings", "access", "volume", "mlflow", "disk")
USUAL = ("credentials", "settings", "access", "volume")
#: Where KFP is, and where its runs' pods start if it serves one user.
KUBEFLOW = "kubeflow"
#: Stands in a Secret where its value belongs.
PLACEHOLDER = "REPLACE_ME"

#: Keys that most sites need; the others are commented out in the example.
_COMMON = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MANIFEST = re.compile(r"^kind: ", re.MULTILINE)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ENDPOINT = "http://seaweedfs:8333"
_BUCKET = "s3://mlflow"
_IMAGE = "registry.example.com/rco-mlflow:TAG"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What manifests are for.

    Attributes:
        namespace: that the runs' pods start in.
        deployment: names the objects and their keys.
        s3: bucket, or folder in one, that MLflow's server keeps artifacts in.
        s3_endpoint: of the store of tasks and of MLflow; empty: an example.
        mlflow_image: that MLflow's server runs in; empty: an example.
    """

    namespace: str = KUBEFLOW
    deployment: Deployment | None = None
    s3: str = ""
    s3_endpoint: str = ""
    mlflow_image: str = ""

    def __post_init__(self) -> None:
        require_namespace(self.namespace)
        if self.s3 and (has_credentials(self.s3) or not re.fullmatch(r"s3://[^/\s?#\"']+(/[^\s?#\"']*)?", self.s3)):
            raise InputError("s3", "...", "is not the address of a bucket", "Write s3://BUCKET or s3://BUCKET/PREFIX")
        if self.s3_endpoint and (
            has_credentials(self.s3_endpoint) or not re.fullmatch(r"https?://[^/\s?#\"'@]+(/[^\s?#\"']*)?", self.s3_endpoint)
        ):
            raise InputError(
                "s3-endpoint", "...", "is not the address of a store", "Write http(s)://HOST:PORT, without name and password"
            )
        if self.mlflow_image and not re.fullmatch(r"[\w.:/@-]+", self.mlflow_image):
            raise InputError(
                "mlflow-image", self.mlflow_image, "is not the name of an image", "Write HOST/NAME:TAG or HOST/NAME@sha256:..."
            )


def require_namespace(namespace: str) -> None:
    """Refuse what no namespace can be called.

    Raises:
        InputError: naming it.
    """
    if not _NAMESPACE.fullmatch(namespace):
        problem = "is not the name of a namespace"
        raise InputError("namespace", namespace, problem, "Write it in lower case, such as kubeflow or your profile's")


def render(site: Site, parts: Sequence[str] = (), mlflow: bool = False) -> str:
    """YAML for kubectl.

    A Secret is there only if `parts` names credentials: applied with the rest, it would replace the keys that were filled in.
    Otherwise comments say how kubectl makes it.

    Args:
        parts: of `PARTS`; empty: `USUAL`.
        mlflow: add MLflow's server.

    Raises:
        InputError: a part that does not exist.
    """
    for part in parts:
        choice("part", part, PARTS)
    wanted = [*(parts or USUAL), *(["mlflow"] if mlflow and "mlflow" not in parts else [])]
    texts = [text for part in PARTS if part in wanted for text in _part(site, part, whole=part in parts)]
    joined = "".join(
        f"{text}{'---' if _MANIFEST.search(text) else ''}\n" for text in texts
    )  # (comments stand above the next one)
    return joined.replace("NAMESPACE", site.namespace).removesuffix("---\n").rstrip("\n") + "\n"


def _part(site: Site, part: str, whole: bool) -> Iterable[str]:
    deployment = site.deployment or Deployment()
    if part == "credentials":
        for source in deployment.environment:
            if source.secret:
                yield _secret(source, whole)
    elif part == "settings":
        for source in deployment.environment:
            if source.config_map:
                yield _config_map(source).replace(_ENDPOINT, site.s3_endpoint or _ENDPOINT)
        if (certificates := deployment.certificates).config_map:
            command = f"kubectl create configmap {certificates.config_map} -n NAMESPACE --from-file={certificates.key}"
            yield f"# The certificates of your authority (PEM):\n#\n#   {command}\n"
    elif part == "volume":
        yield from (_template(part).replace("rco-work", volume.claim) for volume in _volumes(site))
    elif part == "access":
        yield _access(deployment)
    elif part == "mlflow":
        text = _template(part).replace(f"value: {_BUCKET}", f"value: {(site.s3 or _BUCKET).rstrip('/')}")
        yield text.replace(_ENDPOINT, site.s3_endpoint or _ENDPOINT).replace(_IMAGE, site.mlflow_image or _IMAGE)
    else:
        yield _template(part)


def _volumes(site: Site) -> tuple[Volume, ...]:
    """The claims of the deployment file; without a file, an example."""
    return (Volume(claim="rco-work", path="/work"),) if site.deployment is None else site.deployment.volumes


def _template(name: str) -> str:
    return resources.files("pipelines.cluster").joinpath("kubernetes", f"{name}.yaml").read_text(encoding="utf-8")


def _secret(source: Source, whole: bool) -> str:
    """How kubectl makes a Secret; `whole`: its manifest too, with placeholders for values."""
    keys = dict.fromkeys(source.variables.values())
    shown = [key for key in keys if key in _COMMON] or [*keys]
    literals = " \\\n".join(f'#     --from-literal={key}="${re.sub(r"[^A-Z0-9_a-z]", "_", key)}"' for key in shown)
    comment = f"""\
# The credentials of MLflow and of the S3 store, for tasks. kubectl makes them a Secret from a file that only you can read, with
# lines such as {shown[0]}=..., and replaces what is there,
#
#   kubectl create secret generic {source.secret} -n NAMESPACE --from-env-file=credentials.env \\
#     --dry-run=client -o yaml | kubectl apply -f -
#
# or from variables (others on this machine may see them while kubectl runs):
#
#   kubectl create secret generic {source.secret} -n NAMESPACE \\
{literals}
#
# Leave out what your services do not ask for. Where pods have a role of their own (IRSA and the like), leave out AWS_ keys.
"""
    if not whole:
        named = textwrap.fill(f"The keys that tasks read: {', '.join(keys)}.", 128, initial_indent="# ", subsequent_indent="# ")
        return (
            f"{comment}{named}\n# The Secret is not printed here: applied with the rest, it would replace what you filled in.\n"
        )
    lines = "".join(f"  {'' if key in shown else '# '}{key}: {PLACEHOLDER}\n" for key in keys)
    return f"""\
{comment}# Filled in, this is a secret file: keep it out of version control. Applied as it is, it replaces what is there.
apiVersion: v1
kind: Secret
metadata:
  name: {source.secret}
  namespace: NAMESPACE
type: Opaque
stringData:
{lines}"""


def _config_map(source: Source) -> str:
    """Our text for ours with all its keys, else the keys that the deployment file names."""
    text = _template("settings")
    ours = Deployment().environment[0]
    keys = dict.fromkeys(source.variables.values())
    if source.config_map == ours.config_map and set(keys) == set(ours.variables.values()):
        return text
    known = yaml.safe_load(text)["data"]
    head = text.partition("\ndata:\n")[0].replace(ours.config_map, source.config_map)
    lines = "".join(f'  {key}: "{known.get(key, PLACEHOLDER)}"\n' for key in keys)
    return f"{head}\ndata:\n{lines}"


def _access(deployment: Deployment) -> str:
    sources = deployment.environment
    secrets = [s.secret for s in sources if s.secret] + list(deployment.image_pull_secrets)
    maps = [s.config_map for s in sources if s.config_map]
    if deployment.certificates.config_map:
        maps.append(deployment.certificates.config_map)
    named = {"SECRETS": secrets, "CONFIG_MAPS": [*maps, "kfp-launcher"]}
    text = _template("access")
    for token, names in named.items():
        text = text.replace(f"[{token}]", f"[{', '.join(dict.fromkeys(names))}]")
    return text
