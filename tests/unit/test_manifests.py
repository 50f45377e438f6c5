"""What `rco cluster manifests` prints: what Kubernetes takes, with the names and keys that tasks are given, and no secret."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.cluster.deployment import Deployment, read_deployment
from pipelines.cluster.manifests import PARTS, PLACEHOLDER, Site, render

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docs" / "kubernetes"
EXAMPLE = MANIFESTS / "deployment.yaml"


def printed(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(main, ["cluster", "manifests", *arguments])
    assert done.exit_code == status, done.output
    return done.output


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def validated(text: str) -> list[dict[str, Any]]:
    import kubernetes_validate

    found = documents(text)
    for document in found:
        for version in ("1.31", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)
    return found


def by_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in found if document["kind"] == kind]


@pytest.mark.parametrize("part", PARTS)
def test_the_files_of_the_documentation_are_what_is_printed(part: str) -> None:
    assert (MANIFESTS / f"{part}.yaml").read_text() == printed(part)


def test_all_that_is_usual_for_a_namespace() -> None:
    text = printed("--namespace", "team-a", "--mlflow")
    found = validated(text)
    assert {d["kind"] for d in found} == {
        *("ConfigMap", "PersistentVolumeClaim", "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
        *("Service", "Deployment"),
    }
    settings, credentials = Deployment().environment
    assert [d["metadata"]["name"] for d in by_kind(found, "ConfigMap")] == [settings.config_map]
    for document in found:
        elsewhere = {"rco-kfp-team-a": "kubeflow", "rco-autoscaler-team-a": "kube-system", "rco-nodes-team-a": None}
        where = elsewhere.get(document["metadata"]["name"], "team-a")
        assert document["metadata"].get("namespace") == where, document
        for subject in document.get("subjects", ()):
            assert subject["namespace"] == "team-a"
    # Applied together, a Secret's manifest would replace what somebody has filled in.
    assert PLACEHOLDER not in text
    assert f"kubectl create secret generic {credentials.secret} -n team-a --from-env-file=credentials.env" in text
    assert all(key in text for key in credentials.variables.values())
    (container,) = by_kind(found, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
    (hosts,) = (e["value"] for e in container["env"] if e["name"] == "MLFLOW_SERVER_ALLOWED_HOSTS")
    for name in ("rco-mlflow", "rco-mlflow.team-a", "rco-mlflow.team-a.svc", "rco-mlflow.team-a.svc.cluster.local"):
        assert {name, f"{name}:*"} <= set(hosts.split(","))
    assert "kubeflow" not in hosts
    assert container["envFrom"] == [{"secretRef": {"name": "rco-mlflow"}}]
    assert "kubectl create secret generic rco-mlflow -n team-a --from-env-file=mlflow.env" in text


def test_the_manifest_of_a_secret_only_if_it_is_named() -> None:
    (secret,) = validated(printed("credentials", "--namespace", "team-a"))
    assert set(secret["stringData"].values()) == {PLACEHOLDER}
    assert secret["metadata"] == {"name": "rco-credentials", "namespace": "team-a"}
    assert not by_kind(documents(printed()), "Secret")


def test_names_and_keys_are_those_of_the_deployment_file() -> None:
    site = read_deployment(EXAMPLE)
    found = validated(printed("credentials", "settings", "access", "volume", "--deployment", str(EXAMPLE)))
    settings, credentials = site.environment
    (secret,), (config_map,) = by_kind(found, "Secret"), by_kind(found, "ConfigMap")
    assert (config_map["metadata"]["name"], set(config_map["data"])) == (settings.config_map, set(settings.variables.values()))
    assert (secret["metadata"]["name"], set(secret["stringData"])) == (credentials.secret, set(credentials.variables.values()))
    assert [d["metadata"]["name"] for d in by_kind(found, "PersistentVolumeClaim")] == [v.claim for v in site.volumes]
    (role,) = (d for d in by_kind(found, "Role") if d["metadata"]["name"] == "rco")
    readable = {name for rule in role["rules"] for name in rule.get("resourceNames", ())}
    assert {settings.config_map, credentials.secret, *site.image_pull_secrets, site.certificates.config_map} <= readable


def test_other_names_and_several_objects(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "environment:\n"
        "  - {config_map: team-mlflow, variables: {MLFLOW_TRACKING_URI: tracking.uri}}\n"
        "  - {config_map: team-s3, variables: [AWS_ENDPOINT_URL_S3]}\n"
        "  - {secret: team-keys, variables: {AWS_ACCESS_KEY_ID: key-id, AWS_SECRET_ACCESS_KEY: key}}\n"
        "volumes: [{claim: one, path: /a}, {claim: two, path: /b}]\n"
        "certificates: {config_map: company-ca}\n"
    )
    text = printed("credentials", "settings", "volume", "--deployment", str(file), "--s3-endpoint", "http://s3.example:9000")
    found = validated(text)
    assert {d["metadata"]["name"]: d["data"] for d in by_kind(found, "ConfigMap")} == {
        "team-mlflow": {"tracking.uri": PLACEHOLDER},
        "team-s3": {"AWS_ENDPOINT_URL_S3": "http://s3.example:9000"},
    }
    (secret,) = by_kind(found, "Secret")
    assert secret["stringData"] == {"key-id": PLACEHOLDER, "key": PLACEHOLDER}
    assert "generic team-keys" in text
    assert '--from-literal=key-id="$key_id"' in text, "a variable of a shell"
    assert "rco-" not in re.sub(r"\$\w+", "", text)
    assert [d["metadata"]["name"] for d in by_kind(found, "PersistentVolumeClaim")] == ["one", "two"]
    assert "kubectl create configmap company-ca -n kubeflow --from-file=ca.crt" in text


def test_the_server_of_mlflow_for_a_site() -> None:
    arguments = [
        "--s3",
        "s3://artifacts/mlflow/",
        "--s3-endpoint",
        "https://s3.example",
        "--mlflow-image",
        "r.example/m@sha256:1",
    ]
    (deployment,) = by_kind(validated(printed("mlflow", *arguments)), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert container["image"] == "r.example/m@sha256:1"
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"] == "s3://artifacts/mlflow"
    assert environment["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "part = 'nonsense'"),
        (["--namespace", "Team A"], "is not the name of a namespace"),
        (["--namespace", "a\nkind: Secret"], "is not the name of a namespace"),
        (["--s3", "https://s3.example/b"], "is not the address of a bucket"),
        (["--s3", "s3://me:canary-1@b"], "is not the address of a bucket"),
        (["--s3-endpoint", "http://me:canary-1@s3.example"], "is not the address of a store"),
        (["--mlflow-image", "a b"], "is not the name of an image"),
        (["--deployment", "no-such-file.yaml"], "is not a file"),
    ],
)
def test_what_is_refused(arguments: list[str], words: str) -> None:
    output = printed(*arguments, status=2)
    assert words in output
    assert "canary" not in output


def test_a_part_is_printed_once() -> None:
    assert render(Site(), ("mlflow", "settings"), mlflow=True) == render(Site(), ("settings", "mlflow"))


def test_an_installed_wheel_has_the_texts() -> None:
    """`setuptools` packs what these patterns name."""
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in package_data["pipelines"] for path in (ROOT / "pipelines").glob(pattern)}
    assert {*(ROOT / "pipelines" / "cluster" / "kubernetes").iterdir()} <= packed
