"""`rco doctor --cluster` before a stub of Kubernetes' API and a stub registry: what is right, wrong, or may not be read, and a
probe whose pod never stays."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.cluster import checks, objects, probe, registry
from pipelines.cluster.checks import plugin, version, workflows
from pipelines.cluster.deployment import Deployment, Source, read_deployment
from pipelines.cluster.kube import AWAY, DENIED, MISSING, REFUSED, UNKNOWN_LOGIN, Kube, KubeError
from pipelines.cluster.manifests import Site, render
from pipelines.cluster.nodes import nodes
from pipelines.cluster.placement import Cluster
from pipelines.cluster.podspec import pods
from pipelines.cluster.registry import Reference
from rco.core.errors import InputError
from rco.tasks.probe import lines
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Finding
from tests.kube_stub import TOKEN, KubeStub, RefusalError, RegistryStub, encoded, pull_secret, soon

ROOT = Path(__file__).parents[2]
DEFAULTS = json.loads((ROOT / "tests" / "recorded" / "workflow-controller.json").read_text())
NAMESPACE = "team-a"
PASSWORD = "canary-91c4"
DIGEST = f"sha256:{'0a' * 32}"
SITE = """\
image_pull_secrets: [registry-credentials]
volumes: [{claim: rco-work, path: /work}]
resume: /work/resume
train: {gpus: 1, cpu_request: 4, memory_request: 8Gi}
"""
SETTINGS = {"MLFLOW_TRACKING_URI": "http://rco-mlflow:5000", "AWS_ENDPOINT_URL_S3": "http://s3:8333", "AWS_REGION": "us-east-1"}
KEYS = {"AWS_ACCESS_KEY_ID": "rco", "AWS_SECRET_ACCESS_KEY": PASSWORD}
FOUND_IN_THE_POD = [
    Finding(name="pod", status=OK, found="tasks are given MLFLOW_TRACKING_URI"),
    Finding(name="S3", status=FAIL, found="s3://b is refused", next_step="Check the key"),
]


def document(kind: str, name: str, namespace: str = NAMESPACE, **content: Any) -> dict[str, Any]:
    where = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **where}, **content}


def secret(**data: str) -> dict[str, Any]:
    return document("Secret", "rco-credentials", type="Opaque", data={key: encoded(text) for key, text in data.items()})


def node(name: str, *, taints: Any = (), labels: Any = None, **allocatable: str) -> dict[str, Any]:
    given = {"cpu": "7910m", "memory": "32586948Ki", "pods": "110", **allocatable}
    made = document("Node", name, "", spec={"taints": list(taints)}, status={"allocatable": given, "capacity": given})
    made["metadata"]["labels"] = {"kubernetes.io/arch": "amd64", **(labels or {})}
    return made


def deployment(name: str, image: str, ready: int = 1, config: str = "") -> dict[str, Any]:
    volumes = [{"name": "config", "configMap": {"name": config}}] if config else []
    pod = {"containers": [{"name": name, "image": image}], "volumes": volumes}
    return document("Deployment", name, "kubeflow", spec={"template": {"spec": pod}}, status={"readyReplicas": ready})


GPU_NODE = node(
    "gpu-1", taints=[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}], **{"nvidia.com/gpu": "8"}
)


def sound() -> KubeStub:
    """A cluster in which nothing is wrong, of KFP without its retry defaults."""
    stub = KubeStub(log="\n".join(lines(FOUND_IN_THE_POD[:1])))
    stub.objects[f"/api/v1/namespaces/{NAMESPACE}"] = document("Namespace", NAMESPACE, "")
    for made in (
        secret(**KEYS),
        document("ConfigMap", "rco-settings", data=SETTINGS),
        document("ServiceAccount", "default-editor"),
        document("PersistentVolumeClaim", "rco-work", spec={"accessModes": ["ReadWriteMany"]}, status={"phase": "Bound"}),
        deployment("ml-pipeline", "ghcr.io/kubeflow/kfp-api-server:2.17.0"),
        deployment("workflow-controller", "quay.io/argoproj/workflow-controller:v4.0.5"),
        document("ConfigMap", "workflow-controller-configmap", "kubeflow", data={"workflowDefaults": "spec: {}"}),
        node("cpu-1"),
        GPU_NODE,
    ):
        stub.add(made)
    return stub


@pytest.fixture
def images() -> Iterator[RegistryStub]:
    held = RegistryStub(
        images={f"team/rco-python:{DIGEST}": {"layers": [{"size": 3_400_000_000}]}}, logins={"puller": PASSWORD}
    )
    with held.listening():
        yield held


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: RegistryStub) -> Iterator[KubeStub]:
    """A sound cluster, which kubectl's context names, and an image that it can pull."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KFP_KUBE_CONTEXT", raising=False)
    monkeypatch.setenv("RCO_IMAGE", f"127.0.0.1:{images.port}/team/rco-python@{DIGEST}")
    monkeypatch.setattr(probe, "PACE", 0.01)
    (tmp_path / "site.yaml").write_text(SITE)
    made = sound()
    made.add(pull_secret("registry-credentials", NAMESPACE, **{f"127.0.0.1:{images.port}": ("puller", PASSWORD)}))
    with made.listening(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield made


Doctor = Callable[..., tuple[int, list[Finding]]]


@pytest.fixture
def doctor(stub: KubeStub, tmp_path: Path) -> Doctor:
    """Runs the command; gives its status and findings. No secret is in what it prints."""

    def run(*arguments: str) -> tuple[int, list[Finding]]:
        given = ["doctor", "--cluster", "--json", "--namespace", NAMESPACE, "--deployment", str(tmp_path / "site.yaml")]
        done = CliRunner().invoke(main, [*given, *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        for hidden in (PASSWORD, TOKEN, encoded(PASSWORD)):
            assert hidden not in done.output + done.stderr
        assert "Traceback" not in done.output + done.stderr
        return done.exit_code, [Finding(**finding) for finding in json.loads(done.stdout)["findings"]]

    return run


def of(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def one(findings: list[Finding], name: str) -> Finding:
    (found,) = of(findings, name)
    assert bool(found.next_step) == (found.status != OK), found
    return found


def test_a_sound_cluster(doctor: Doctor, stub: KubeStub, images: RegistryStub) -> None:
    status, findings = doctor()
    assert status == 0
    assert {finding.name: finding.status for finding in findings if finding.name != "image"} == {
        **dict.fromkeys(("cluster", "Secret", "ConfigMap", "PVC", "account", "registry", "KFP", "Argo"), OK),
        **dict.fromkeys(("workflows", "plugin", "admission", "nodes"), OK),
    }, findings
    assert one(findings, "cluster").found == "Kubernetes v1.34.1, namespace team-a"
    assert one(findings, "registry").found.endswith("is there, with the rights of registry-credentials; 3.4 GB to pull")
    assert one(findings, "KFP").found == "KFP 2.17.0"
    assert one(findings, "Argo").found == "Argo 4.0.5"
    assert "classes check, light, data, train would be admitted" in one(findings, "admission").found
    assert "1 with nvidia.com/gpu (8 in all)" in one(findings, "nodes").found
    assert not stub.pods()
    assert {request.verb for request in stub.requests} == {"get", "list", "create"}
    assert all(request.dry_run for request in stub.requests if request.verb == "create")


def test_the_rights_that_the_manifests_give_are_enough(doctor: Doctor, stub: KubeStub, tmp_path: Path) -> None:
    site = Site(namespace=NAMESPACE, deployment=read_deployment(tmp_path / "site.yaml"))
    stub.allow([*yaml.safe_load_all(render(site, ["access"]))])
    stub.add(deployment("ml-pipeline", "kfp:2.17.0", config="pipeline-api-server-config"))
    stub.add(
        document("ConfigMap", "pipeline-api-server-config", "kubeflow", data={"config.json": '{"plugins": {"mlflow": {}}}'})
    )
    status, findings = doctor("--probe")
    assert status == 0, findings
    assert not of(findings, "probe")[1:]
    assert not [finding for finding in findings if finding.status == SKIPPED], findings
    assert {"delete", "list"} <= {request.verb for request in stub.requests}


def test_what_may_not_be_read_is_said(doctor: Doctor, stub: KubeStub) -> None:
    stub.rights = {}
    status, findings = doctor("--probe")
    assert status == 0
    said = [finding for finding in findings if finding.status == SKIPPED]
    names = {
        "Secret",
        "ConfigMap",
        "PVC",
        "account",
        "registry",
        "KFP",
        "Argo",
        "workflows",
        "plugin",
        "admission",
        "nodes",
        "probe",
    }
    assert {finding.name for finding in said} == names
    for finding in said:
        if finding.name != "registry":
            assert "(403)" in finding.found
            assert "rco cluster manifests access --namespace team-a" in finding.next_step
    assert 'User "system:serviceaccount:team-a:rco" cannot get resource "secrets"' in one(findings, "Secret").found
    assert not [request for request in stub.requests if request.verb == "delete"], "no pod was made"


def test_an_account_that_may_not_be_read_may_have_a_pull_secret(doctor: Doctor, stub: KubeStub, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("")
    stub.rights = {}
    found = one(doctor()[1], "registry")
    assert (found.status, "the service account default-editor may not be read" in found.found) == (SKIPPED, True)


def test_no_cluster_no_login_no_namespace(
    doctor: Doctor, stub: KubeStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stub.remove(f"/api/v1/namespaces/{NAMESPACE}")
    status, findings = doctor("--probe")
    assert (status, one(findings, "cluster").found) == (1, "there is no namespace team-a")
    stub.known = False
    status, (found,) = doctor()
    assert (status, "does not know this login (401)" in found.found) == (1, True)
    stub.known, stub.faults = True, {"GET": 5}
    status, (found,) = doctor()
    assert (status, "cannot be asked" in found.found) == (1, True)
    for content in (None, "a: [", "{}"):
        path = tmp_path / "other"
        if content:
            path.write_text(content)
        monkeypatch.setenv("KUBECONFIG", str(path))
        status, (found,) = doctor()
        assert (status, found.name, "kubectl context" in found.found) == (1, "cluster", True)
    monkeypatch.setenv("KFP_KUBE_CONTEXT", "elsewhere")
    assert "the kubectl context elsewhere" in doctor()[1][0].found


def test_the_option_needs_the_cluster() -> None:
    done = CliRunner().invoke(main, ["doctor", "--service-account", "mine"])
    assert (done.exit_code, "Add --cluster" in done.output) == (2, True)
    done = CliRunner().invoke(main, ["doctor", "--cluster", "--namespace", "Team A"])
    assert (done.exit_code, "is not the name of a namespace" in done.output) == (2, True)


@pytest.fixture
def kube(stub: KubeStub) -> Kube:
    return Kube.connect()


class TestRefusals:
    """Kubernetes' answers, each as what it is."""

    @pytest.mark.parametrize(
        ("refusal", "kind"),
        [
            (RefusalError(404, "NotFound", 'pods "p" not found', {"name": "p", "kind": "pods"}), MISSING),
            (RefusalError(404, "NotFound", "the server could not find the requested resource"), AWAY),
            (RefusalError(401, "Unauthorized", "Unauthorized"), UNKNOWN_LOGIN),
            (
                RefusalError(403, "Forbidden", 'pods is forbidden: User "jane" cannot create resource "pods" in API group ""'),
                DENIED,
            ),
            (RefusalError(403, "Forbidden", 'pods "p" is forbidden: exceeded quota: team, requested: requests.cpu=4'), REFUSED),
            (RefusalError(403, "Forbidden", 'admission webhook "w" denied the request: an image cannot be latest'), REFUSED),
            (RefusalError(422, "Invalid", 'Pod "p" is invalid: spec.containers[0].image: Required value'), REFUSED),
            (RefusalError(500, "InternalError", "Internal error occurred: failed calling webhook"), AWAY),
        ],
    )
    def test_kinds(self, kube: Kube, stub: KubeStub, refusal: RefusalError, kind: str) -> None:
        def admit(pod: dict[str, Any]) -> None:
            raise refusal

        stub.admit = admit
        with pytest.raises(KubeError) as caught:
            kube.try_to_create(f"/api/v1/namespaces/{NAMESPACE}/pods", {"metadata": {"name": "p"}})
        assert caught.value.kind == kind
        assert caught.value.words == str(refusal)


class TestSources:
    """A Secret or ConfigMap, and the keys that tasks are given."""

    SETTINGS, CREDENTIALS = Deployment().environment

    @pytest.mark.parametrize(
        ("data", "status", "words"),
        [
            (KEYS, OK, "has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; not MLFLOW_TRACKING_USERNAME"),
            ({**KEYS, "AWS_SECRET_ACCESS_KEY": "REPLACE_ME"}, FAIL, "no value yet for AWS_SECRET_ACCESS_KEY"),
            ({**KEYS, "AWS_ACCESS_KEY_ID": ""}, FAIL, "no value yet for AWS_ACCESS_KEY_ID"),
            ({**KEYS, "AWS_ACCESS_KEY_ID": "a\0b"}, FAIL, "AWS_ACCESS_KEY_ID is not text"),
            ({"AWS_ACCESS_KEY_ID": "a"}, WARN, "AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY"),
            ({"AWS_ACESS_KEY_ID": "a"}, WARN, "no task reads: AWS_ACESS_KEY_ID (did you mean AWS_ACCESS_KEY_ID?)"),
            ({"other": "a"}, WARN, "has none of the keys that tasks read"),
            ({}, WARN, "has none of the keys that tasks read"),
        ],
    )
    def test_a_secret(self, kube: Kube, stub: KubeStub, data: dict[str, str], status: str, words: str) -> None:
        stub.add(secret(**data))
        (found,) = [f for f in objects.source(kube, NAMESPACE, self.CREDENTIALS) if f.status != OK or status == OK]
        assert (found.status, words in found.found) == (status, True), found
        assert bool(found.next_step) == (status != OK)
        assert PASSWORD not in repr(found)

    @pytest.mark.parametrize(("optional", "status", "words"), [(True, WARN, "tasks go without"), (False, FAIL, "waits for it")])
    def test_one_that_is_not_there(self, kube: Kube, stub: KubeStub, optional: bool, status: str, words: str) -> None:
        stub.remove(f"/api/v1/namespaces/{NAMESPACE}/configmaps/rco-settings")
        source = Source(config_map="rco-settings", variables=self.SETTINGS.variables, optional=optional)
        (found,) = objects.source(kube, NAMESPACE, source)
        assert (found.name, found.status, words in found.found) == ("ConfigMap", status, True)
        assert "rco cluster manifests settings --namespace team-a" in found.next_step

    def test_no_address_of_mlflow(self, kube: Kube, stub: KubeStub) -> None:
        stub.add(document("ConfigMap", "rco-settings", data={"AWS_REGION": "us-east-1"}))
        first, second = objects.source(kube, NAMESPACE, self.SETTINGS)
        assert (first.status, "has no MLFLOW_TRACKING_URI: nothing is tracked" in first.found) == (WARN, True)
        assert second.status == OK

    def test_a_key_that_must_be_there(self, kube: Kube) -> None:
        source = Source(config_map="rco-settings", variables={"A": "a", "AWS_REGION": "AWS_REGION"}, optional=False)
        first, second = objects.source(kube, NAMESPACE, source)
        assert (first.status, "has no a, and is not optional" in first.found, second.status) == (FAIL, True, OK)

    def test_certificates(self, kube: Kube, stub: KubeStub, tmp_path: Path) -> None:
        (tmp_path / "ca.yaml").write_text("certificates: {config_map: company-ca}\n")
        site = read_deployment(tmp_path / "ca.yaml")
        (found,) = objects.certificates(kube, NAMESPACE, site)
        assert (found.status, "waits for it" in found.found) == (FAIL, True)
        for text, status in (("nothing", FAIL), ("-----BEGIN CERTIFICATE-----\n", OK)):
            stub.add(document("ConfigMap", "company-ca", data={"ca.crt": text}))
            assert objects.certificates(kube, NAMESPACE, site)[0].status == status


class TestObjects:
    @pytest.mark.parametrize(
        ("phase", "modes", "status", "words"),
        [
            ("Bound", ["ReadWriteMany"], OK, "is Bound"),
            ("Bound", ["ReadWriteOnce"], WARN, "tasks on other nodes wait"),
            ("Pending", ["ReadWriteMany"], WARN, "wait for the first pod"),
            ("Lost", ["ReadWriteMany"], FAIL, "its volume is gone"),
            ("", [], FAIL, "is not there"),
        ],
    )
    def test_claims(self, kube: Kube, stub: KubeStub, phase: str, modes: list[str], status: str, words: str) -> None:
        if phase:
            stub.add(document("PersistentVolumeClaim", "rco-work", spec={"accessModes": modes}, status={"phase": phase}))
        else:
            stub.remove(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/rco-work")
        (found,) = objects.claim(kube, NAMESPACE, "rco-work")
        assert (found.status, words in found.found) == (status, True), found

    def test_accounts(self, kube: Kube) -> None:
        assert objects.default_account("kubeflow") == "pipeline-runner"
        (found,) = objects.account(kube, NAMESPACE, "nobody")
        assert (found.status, "no pod of a run can be made" in found.found) == (FAIL, True)


class TestKfp:
    @pytest.mark.parametrize(
        ("image", "ready", "status", "words"),
        [
            ("ghcr.io/kubeflow/kfp-api-server:2.4.1", 1, FAIL, "KFP 2.4.1, older than 2.5"),
            ("ghcr.io/kubeflow/kfp-api-server:2.10.0", 1, WARN, "KFP 2.10.0, older than the"),
            (f"r.example:5000/kfp@{DIGEST}", 1, OK, "KFP of unknown version"),
            ("ghcr.io/kubeflow/kfp-api-server:2.17.0", 0, FAIL, "of which no pod is ready"),
        ],
    )
    def test_versions(self, kube: Kube, stub: KubeStub, image: str, ready: int, status: str, words: str) -> None:
        stub.add(deployment("ml-pipeline", image, ready))
        (found,) = version(kube, NAMESPACE, "KFP")
        assert (found.status, words in found.found) == (status, True), found

    def test_kfp_that_is_elsewhere(self, kube: Kube, stub: KubeStub) -> None:
        stub.remove("/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline")
        stub.remove("/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap")
        (found,) = version(kube, NAMESPACE, "KFP")
        assert (found.status, "is not there" in found.found) == (WARN, True)
        assert workflows(kube, NAMESPACE)[0].status == SKIPPED

    def test_retries_of_kfp_as_it_comes(self, kube: Kube, stub: KubeStub) -> None:
        stub.add(document("ConfigMap", "workflow-controller-configmap", "kubeflow", data=DEFAULTS))
        (found,) = workflows(kube, NAMESPACE)
        assert found.status == WARN
        assert "OnError is the policy of all retries" in found.found
        assert "1 h 00 min after its end" in found.found

    @pytest.mark.parametrize(
        ("config", "own", "status", "words"),
        [
            ({}, {}, OK, "is not on"),
            ({"endpoint": "http://mlflow.mlflow:5000", "settings": {}}, {}, OK, "without injectUserEnvVars"),
            (
                {"endpoint": "http://m:5000", "settings": {"injectUserEnvVars": True}},
                {},
                WARN,
                "http://m:5000; the address in our",
            ),
            (
                {"endpoint": "http://m:5000"},
                {"settings": {"injectUserEnvVars": True}},
                WARN,
                "http://m:5000; the address in our",
            ),
            ({"endpoint": SETTINGS["MLFLOW_TRACKING_URI"], "settings": {"injectUserEnvVars": True}}, {}, OK, "for every task"),
            ({"endpoint": f"http://u:{PASSWORD}@m", "settings": {"injectUserEnvVars": True}}, {}, WARN, "(hidden)"),
        ],
    )
    def test_the_mlflow_plugin(
        self, kube: Kube, stub: KubeStub, config: dict[str, Any], own: dict[str, Any], status: str, words: str
    ) -> None:
        stub.add(deployment("ml-pipeline", "kfp:2.17.0", config="api-config"))
        text = json.dumps({"plugins": {"mlflow": config}} if config else {"DBConfig": {}})
        stub.add(document("ConfigMap", "api-config", "kubeflow", data={"config.json": text, "other": "not JSON"}))
        if own:
            stub.add(document("ConfigMap", "kfp-launcher", data={"plugins.mlflow": json.dumps(own)}))
        (found,) = plugin(kube, NAMESPACE, Deployment())
        assert (found.status, words in found.found) == (status, True), found
        assert PASSWORD not in found.found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The pods of `SITE`."""
    path = tmp_path_factory.mktemp("site") / "site.yaml"
    path.write_text(SITE)
    cluster = Cluster(deployment=read_deployment(path), image="registry.example/rco-python:1")
    return pods(cluster, NAMESPACE, "default-editor", "rco-probe")


class TestPods:
    @pytest.mark.parametrize("file", [None, ROOT / "docs" / "kubernetes" / "deployment.yaml"], ids=["without", "example"])
    def test_they_are_what_kubernetes_takes(self, file: Path | None) -> None:
        import kubernetes_validate

        cluster = Cluster(deployment=read_deployment(file), image="registry.example/rco-python:1")
        for pod in pods(cluster, NAMESPACE, "default-editor", "rco-probe").values():
            kubernetes_validate.validate(pod, "1.31", strict=True)

    def test_they_are_given_what_tasks_are(self, made: dict[str, dict[str, Any]]) -> None:
        spec = made["check"]["spec"]
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {
            "rco-settings": "/etc/rco/environment/config-map/rco-settings",
            "rco-credentials": "/etc/rco/environment/secret/rco-credentials",
            "rco-work": "/work",
        }
        assert {e["name"]: e.get("value") for e in container["env"]}["RCO_RESUME"] == "/work/resume"
        assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("default-editor", [{"name": "registry-credentials"}])
        (trains,) = made["train"]["spec"]["containers"]
        assert trains["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert [v["emptyDir"]["medium"] for v in made["train"]["spec"]["volumes"] if v["name"] == "shm"] == ["Memory"]

    def test_keys_by_reference(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text("environment: [{secret: a.b, variables: {MLFLOW_TRACKING_TOKEN: t, X: t}}]\n")
        cluster = Cluster(deployment=read_deployment(tmp_path / "s.yaml"), image="r.example/i:1")
        (container,) = pods(cluster, NAMESPACE, "sa", "p")["check"]["spec"]["containers"]
        key = {"secretKeyRef": {"name": "a.b", "key": "t", "optional": True}}
        assert [e["name"] for e in container["env"] if e.get("valueFrom") == key] == ["X", "RCO_MLFLOW_TRACKING_TOKEN"]


class TestNodes:
    def test_what_fits_on_none(self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]]) -> None:
        stub.remove("/api/v1/nodes/gpu-1")
        stub.add(node("small", cpu="1930m", **{"nvidia.com/gpu": "1"}))
        stub.add(
            node("tainted", taints=[{"key": "dedicated", "value": "db", "effect": "NoSchedule"}], **{"nvidia.com/gpu": "1"})
        )
        (found,) = nodes(kube, NAMESPACE, made)
        assert found.status == FAIL
        assert "a pod of the class train fits on none, and stays Pending" in found.found
        for why in ("0 of 1 nvidia.com/gpu (1 node)", "cpu 1930m of 4 (1 node)", "taint dedicated=db:NoSchedule (1 node)"):
            assert why in found.found
        assert "2 with nvidia.com/gpu (2 in all)" in found.found
        stub.add(document("ConfigMap", "cluster-autoscaler-status", "kube-system", data={}))
        (found,) = nodes(kube, NAMESPACE, made)
        assert (found.status, "an autoscaler may add one" in found.found) == (WARN, True)

    def test_labels_and_no_nodes(self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]]) -> None:
        picky = json.loads(json.dumps(made))
        picky["light"]["spec"]["nodeSelector"] = {"kubernetes.io/arch": "arm64"}
        (found,) = nodes(kube, NAMESPACE, picky)
        assert "class light" in found.found
        assert "no label kubernetes.io/arch=arm64 (2 nodes)" in found.found
        for name in ("cpu-1", "gpu-1"):
            stub.remove(f"/api/v1/nodes/{name}")
        assert [f.status for f in nodes(kube, NAMESPACE, made)] == [FAIL] * 4


def test_admission(doctor: Doctor, stub: KubeStub) -> None:
    def admit(pod: dict[str, Any]) -> None:
        if pod["metadata"]["name"].endswith("-train"):
            name = pod["metadata"]["name"]
            raise RefusalError(403, "Forbidden", f'pods "{name}" is forbidden: exceeded quota: team, limited: requests.cpu=2')

    stub.admit = admit
    status, findings = doctor()
    refused, admitted = of(findings, "admission")
    assert (status, refused.status, admitted.status) == (1, FAIL, OK)
    assert "class train is not admitted" in refused.found
    assert "exceeded quota" in refused.found
    assert "check, light, data would" in admitted.found


class TestRegistry:
    def look(self, images: RegistryStub, *, version: str = DIGEST, **login: str) -> registry.Found:
        reference = Reference.of(f"127.0.0.1:{images.port}/team/rco-python@{version}")
        document = pull_secret("s", NAMESPACE, **{f"127.0.0.1:{images.port}": tuple(*login.items())} if login else {})
        return registry.look(reference, registry.logins("s", document))

    @pytest.mark.parametrize("basic", [False, True], ids=["token", "basic"])
    def test_logins(self, images: RegistryStub, basic: bool) -> None:
        images.basic = basic
        assert self.look(images, puller=PASSWORD).outcome == registry.THERE
        assert self.look(images, puller="wrong").outcome == registry.REFUSED
        found = self.look(images)
        assert (found.outcome, found.login) == (registry.REFUSED, None)
        assert self.look(images, puller=PASSWORD, version="sha256:other").outcome == registry.ABSENT
        assert PASSWORD not in repr(self.look(images, puller=PASSWORD))

    def test_a_public_one_and_none(self, images: RegistryStub) -> None:
        images.public = True
        assert self.look(images).outcome == registry.THERE
        found = registry.look(Reference.of("127.0.0.1:1/team/rco-python:1"))
        assert (found.outcome, "nothing listens there" in found.facts) == (registry.AWAY, True)

    def test_a_login_goes_nowhere_else(self, images: RegistryStub) -> None:
        """A realm without TLS is not sent one, unless the registry itself is asked without."""
        reference = Reference.of("registry.example/team/rco-python:1")
        login = registry.Login(secret="s", registry="registry.example", user="puller", password=PASSWORD)
        asked = {"realm": f"http://127.0.0.1:{images.port}/token", "service": "stub"}
        import requests

        with requests.Session() as session:
            token, problem = registry._token(session, reference, asked, login)
        assert (token, bool(problem), images.asked) == ("", True, [])

    @pytest.mark.parametrize(
        ("image", "address"),
        [
            ("rco", "https://registry-1.docker.io/v2/library/rco/manifests/latest"),
            ("docker.io/team/rco:1", "https://registry-1.docker.io/v2/team/rco/manifests/1"),
            ("r.example:5000/a/b/rco:1", "https://r.example:5000/v2/a/b/rco/manifests/1"),
            (f"r.example/rco:1@{DIGEST}", f"https://r.example/v2/rco/manifests/{DIGEST}"),
            ("localhost:5000/rco", "http://localhost:5000/v2/rco/manifests/latest"),
        ],
    )
    def test_addresses(self, image: str, address: str) -> None:
        assert Reference.of(image).address == address

    @pytest.mark.parametrize(
        ("written", "image", "fits"),
        [
            ("https://index.docker.io/v1/", "team/rco", True),
            ("r.example", "r.example/team/rco:1", True),
            ("https://r.example/v2/", "r.example/team/rco:1", True),
            ("r.example/team", "r.example/team/rco:1", True),
            ("r.example/te", "r.example/team/rco:1", False),
            ("*.example", "r.example/team/rco:1", True),
            ("*.example", "a.b.example/team/rco:1", False),
            ("example", "r.example/team/rco:1", False),
            ("r.example:5000", "r.example/team/rco:1", False),
        ],
    )
    def test_which_login_is_for_which_image(self, written: str, image: str, fits: bool) -> None:
        assert registry.Login(secret="s", registry=written, user="u", password="p").fits(Reference.of(image)) is fits

    @pytest.mark.parametrize(
        "data", [{}, {".dockerconfigjson": "%"}, {".dockerconfigjson": encoded("[]")}, {"a": encoded("b")}]
    )
    def test_what_is_no_pull_secret(self, data: dict[str, str]) -> None:
        with pytest.raises(InputError, match="holds no credentials of a registry"):
            registry.logins("s", {"data": data})

    def test_an_older_one(self) -> None:
        auths = {"r.example": {"auth": encoded("puller:pass:word")}}
        (login,) = registry.logins("s", {"data": {".dockercfg": encoded(json.dumps(auths))}})
        assert (login.user, login.password) == ("puller", "pass:word")

    def test_what_the_doctor_says(self, kube: Kube, stub: KubeStub, images: RegistryStub, tmp_path: Path) -> None:
        def found() -> list[Finding]:
            site = read_deployment(tmp_path / "site.yaml")
            image = os.environ["RCO_IMAGE"]
            return checks.image(
                kube, checks.Wanted(namespace=NAMESPACE, site=site, service_account="default-editor", image=image)
            )

        held = dict(images.images)
        images.images.clear()
        absent = one(found(), "registry")
        assert absent.status == FAIL
        assert "does not have it (with the rights of registry-credentials)" in absent.found
        images.images.update(held)
        images.logins = {"puller": "another"}
        refused = one(found(), "registry")
        assert (refused.status, "does not take this login" in refused.found) == (FAIL, True)
        stub.remove(f"/api/v1/namespaces/{NAMESPACE}/secrets/registry-credentials")
        missing, anonymous = found()
        assert (missing.status, "registry-credentials is not there: pods pull without it" in missing.found) == (WARN, True)
        assert (anonymous.status, "no pull secret is named" in anonymous.found) == (WARN, True)
        # Without any in the deployment file, those of the service account.
        (tmp_path / "site.yaml").write_text(SITE.replace("image_pull_secrets: [registry-credentials]\n", ""))
        images.logins = {"puller": PASSWORD}
        stub.add(pull_secret("of-account", NAMESPACE, **{f"127.0.0.1:{images.port}": ("puller", PASSWORD)}))
        stub.add(document("ServiceAccount", "default-editor", imagePullSecrets=[{"name": "of-account"}]))
        assert "with the rights of of-account" in one(found(), "registry").found
        assert PASSWORD not in repr(found())


WAITS = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}
CANNOT_PULL = {
    "phase": "Pending",
    "containerStatuses": [
        {
            **{"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0},
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
        }
    ],
}
RUNS = {"phase": "Running"}
DIED = {
    "phase": "Failed",
    "containerStatuses": [
        {
            **{"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0},
            "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
        }
    ],
}


class TestProbe:
    def test_what_the_pod_found_is_told(self, doctor: Doctor, stub: KubeStub) -> None:
        stub.log = "noise\n" + "\n".join(lines(FOUND_IN_THE_POD)) + "\n"
        stub.lives = (WAITS, RUNS, {"phase": "Failed"})
        status, findings = doctor("--probe", "--s3", "s3://bucket/prefix")
        assert status == 1
        assert findings[-3].name == "probe"
        assert [asdict(f) for f in findings[-2:]] == [asdict(f) for f in FOUND_IN_THE_POD]
        assert not stub.pods()
        (pod,) = [r.body for r in stub.requests if r.verb == "create" and not r.dry_run]
        (container,) = pod["spec"]["containers"]
        assert container["command"] == ["python3", "-m", "rco.tasks.probe", "s3://bucket/prefix"]
        assert pod["spec"]["activeDeadlineSeconds"] == 660

    def probed(self, kube: Kube, made: dict[str, dict[str, Any]], limit: float = 20) -> tuple[probe.Probed, list[str]]:
        shown: list[str] = []
        return probe.probe(kube, made["check"], (), limit, shown.append), shown

    @pytest.mark.parametrize(
        ("lives", "log", "words", "step"),
        [
            ((WAITS,), "", "has not ended within 0.3 s: cannot be scheduled: 0/2 nodes are available", "add a node"),
            ((CANNOT_PULL,), "", "ImagePullBackOff: Back-off pulling image", "image_pull_secrets"),
            ((RUNS,), "", "has not ended within 0.3 s: it is Running", "--probe-limit"),
            ((DIED,), "last words\n", "OOMKilled, exit status 137; last words", "this project's"),
            ((DIED,), "/usr/bin/python3: No module named rco.tasks.probe\n", "an older revision", "make build-images"),
            (({"phase": "Failed", "reason": "Evicted"},), "", "found nothing: Evicted", "this project's"),
        ],
    )
    def test_a_pod_that_comes_to_nothing(
        self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]], lives: Any, log: str, words: str, step: str
    ) -> None:
        stub.lives, stub.log = lives, log
        probed, _ = self.probed(kube, made, limit=0.3)
        (found,) = probed.findings
        assert (words in found.found, step in found.next_step) == (True, True), found
        assert not stub.pods()

    def test_a_pod_that_is_stuck_is_not_waited_for_to_the_end(
        self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probe, "_STUCK_FOR", 0.1)
        stub.lives = (CANNOT_PULL,)
        probed, shown = self.probed(kube, made, limit=60)
        assert "does not start: ImagePullBackOff" in probed.findings[0].found
        assert [line for line in shown if "ImagePullBackOff" in line] == [
            "the pod waits: ImagePullBackOff: Back-off pulling image"
        ]
        assert not stub.pods()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_it_is_deleted_when_somebody_stops_it(self, doctor: Doctor, stub: KubeStub, number: signal.Signals) -> None:
        stub.lives = (RUNS,)
        before = signal.getsignal(number)

        def stop() -> None:
            assert soon(lambda: stub.looks > 2)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=stop)
        thread.start()
        status, findings = doctor("--probe")
        thread.join()
        assert status == 130
        assert "stopped before the pod" in one(findings, "probe").found
        assert not stub.pods()
        assert signal.getsignal(number) is before

    def test_it_is_deleted_if_nobody_knows_whether_it_was_made(
        self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]]
    ) -> None:
        stub.faults = {"POST": 1}
        probed, _ = self.probed(kube, made)
        assert "cannot be asked" in probed.findings[0].found
        assert [request.verb for request in stub.requests][-1] == "delete"

    def test_a_pod_that_stays_is_told_of(self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]]) -> None:
        stub.faults = {"DELETE": 2}
        assert [f.status for f in self.probed(kube, made)[0].findings] == [OK, OK]
        assert not stub.pods(), "tried again"
        stub.faults = {"DELETE": 9}
        found = self.probed(kube, made)[0].findings[-1]
        assert (found.status, "could not be deleted" in found.found) == (FAIL, True)
        assert found.next_step.startswith(f"kubectl delete pod -n {NAMESPACE} rco-probe-")

    def test_one_that_is_not_admitted(self, kube: Kube, stub: KubeStub, made: dict[str, dict[str, Any]]) -> None:
        def admit(pod: dict[str, Any]) -> None:
            raise RefusalError(403, "Forbidden", 'pods "p" is forbidden: violates PodSecurity "restricted:latest"')

        stub.admit = admit
        (found,) = self.probed(kube, made)[0].findings
        assert (found.status, 'violates PodSecurity "restricted:latest"' in found.found) == (FAIL, True)
        assert not [request for request in stub.requests if request.verb == "delete"]
