"""The deployment file: what it may say, what is refused and how, and that the documents say the same."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.deployment import (
    CLASSES,
    CertificateAuthority,
    Deployment,
    Source,
    TaskClass,
    Toleration,
    Volume,
    read_deployment,
)
from pipelines.cluster.quantities import cores, memory_bytes, seconds
from pipelines.yamlfile import MOST_BYTES
from rco.core.errors import InputError

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docs" / "kubernetes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.yaml"


def test_no_file_and_an_empty_one_are_the_defaults(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert read_deployment(None) == read_deployment(file) == Deployment()
    assert not any(Deployment().of(name).gpus for name in CLASSES)  # a cluster without GPUs would wait forever
    assert Deployment().parameters == {"device": "cpu", "threads": 2, "workers_per_task": 1, "check_services": True}


def test_one_setting_turns_to_gpus(file: Path) -> None:
    file.write_text("train: {gpus: 1}\n")
    site = read_deployment(file)
    assert site.parameters["device"] == "cuda"
    assert site.parameters["workers_per_task"] == 1
    assert Deployment(train=TaskClass(gpus=4)).parameters["workers_per_task"] == 4, "a worker for each"
    assert site.train.memory_limit == Deployment().train.memory_limit  # the class's own default, not TaskClass's
    assert site.train.memory_limit != TaskClass().memory_limit
    assert (site.check, site.light, site.data) == (Deployment().check, Deployment().light, Deployment().data)


@pytest.mark.parametrize(
    ("request_", "limit", "threads"), [("2", "", 2), ("2", "4500m", 4), ("500m", "", 1), ("64", "", 8), ("0.5", "7.9", 7)]
)
def test_threads_are_the_cores_of_the_pods_that_compute(request_: str, limit: str, threads: int) -> None:
    assert Deployment(train=TaskClass(cpu_request=request_, cpu_limit=limit)).parameters["threads"] == threads


def test_amounts() -> None:
    assert memory_bytes("memory_limit", "3Gi") == 3 * 2**30
    assert memory_bytes("memory_limit", "3G") == 3 * 10**9
    assert [cores("cpu_limit", c) for c in ("4", "0.25", "1500m")] == [4, 0.25, 1.5]
    assert [seconds("timeout", t) for t in ("90s", "2m", "12h", "3d")] == [90, 120, 43200, 259200]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trian: {gpus: 1}", "trian = '...': is not known. Did you mean train?"),
        ("train: {gpu: 1}", "train.gpu = 1: is not known. Did you mean train.gpus?"),
        (
            "train: {memory_limit: 4 gigs}",
            "train.memory_limit = '4 gigs': is not an amount of memory. Write a whole number and a unit",
        ),
        ("train: {memory_limit: 4gb}", "train.memory_limit = '4gb'"),
        ("train: {memory_limit: 1.5Gi}", "train.memory_limit = '1.5Gi'"),
        ("train: {memory_limit: 17179869184}", "is not an amount of memory"),
        ("train: {memory_request: 64Gi}", "train.memory_limit = '16Gi': is below memory_request = 64Gi"),
        ("train: {cpu_request: 8, cpu_limit: 500m}", "train.cpu_limit = '500m': is below cpu_request = 8"),
        ("train: {cpu_request: 0}", "train.cpu_request = '0': is not an amount of CPU"),
        ("train: {cpu_request: two}", "Write cores, or thousandths with m"),
        ("train: {shm: 16Gi}", "train.shm = '16Gi': fills memory_limit = 16Gi"),
        ("train: {gpus: 65}", "train.gpus = 65: is not 0 to 64. A task has the GPUs of one node"),
        ("train: {process_restarts: 101}", "train.process_restarts = 101: is not 0 to 100"),
        ("data: {process_restarts: 1}", "data.process_restarts = 1: would do nothing. Set train.process_restarts"),
        ("train: {gpus: true}", "train.gpus = True: is not a whole number"),
        ("data: {gpus: 1}", "data.gpus = 1: would be idle. Set train.gpus"),
        ("train: {gpu_type: H100}", "train.gpu_type = 'H100': has no vendor"),
        ("train: {timeout: 3600}", "train.timeout = '3600': is not a duration. Write a whole number and s, m, h or d"),
        ("train: {timeout: 1 hour}", "train.timeout = '1 hour'"),
        ("train: {backoff: 0s}", "train.backoff = '0s'"),
        ("train: {retries: -1}", "train.retries = -1: is not 0 to 100"),
        ("train: {backoff_factor: 1.5}", "train.backoff_factor = 1.5: is not a whole number"),
        ("train: {node_selector: {a b: c}}", "train.node_selector = 'a b': is not a key of a label"),
        ("train: {node_selector: {gpu: true}}", "train.node_selector.gpu = True: is not text. Write it in quotes"),
        ("train: {tolerations: {key: a}}", "train.tolerations = '...': is not a list"),
        (
            "train: {tolerations: [{operator: Exist}]}",
            "train.tolerations[0].operator = 'Exist': is not known. Did you mean 'Exists'?",
        ),
        ("train: {tolerations: [{value: x}]}", "train.tolerations[0].key = '': is empty"),
        ("train: {tolerations: [{key: a, operator: Exists, value: x}]}", "tolerations[0].value = 'x'"),
        ("train: {tolerations: [{key: a, toleration_seconds: 5}]}", "needs effect: NoExecute"),
        ("train: 3", "train = 3: is not a mapping. Its keys may be: cpu_request"),
        ("- train", "deployment = '...': is not a mapping"),
        ("image_pull_policy: always", "image_pull_policy = 'always': is not known. Did you mean 'Always'?"),
        ("image_pull_secrets: [Not_A_Name]", "image_pull_secrets = 'Not_A_Name'"),
        ("labels: {pipeline/runid: x}", "labels = 'pipeline/runid': is Kubeflow's own"),
        ("environment: [{secret: s}]", "environment[0].variables = []: is empty"),
        ("environment: [{secret: s, config_map: c, variables: [A]}]", "exclude each other"),
        ("environment: [{variables: [A]}]", "one is needed"),
        ("environment: [{secret: s, variables: [A B]}]", "environment[0].variables = 'A B': is not the name of a variable"),
        ("environment: [{secret: s, variables: {A: 'se/cret'}}]", "Write the key's name, never a value"),
        ("environment: [{secret: s, variables: [A]}, {secret: t, variables: [A]}]", "environment = 'A': is there twice"),
        ("environment: [{secret: s, variables: [A], optional: 'no'}]", "is neither true nor false"),
        ("volumes: [{claim: w, path: work}]", "volumes[0].path = 'work': is not a folder to mount at"),
        ("volumes: [{claim: w, path: /a/../b}]", "volumes[0].path"),
        ("volumes: [{claim: w, path: /w, sub_path: ../x}]", "volumes[0].sub_path"),
        ("volumes: [{claim: w, path: /w}, {claim: w, path: /x}]", "volumes = 'w': is there twice"),
        ("resume: /work/resume", "resume = '/work/resume': is neither an s3:// address nor a folder on one of the volumes"),
        ("resume: /workshop\nvolumes: [{claim: w, path: /work}]", "resume = '/workshop'"),
        ("certificates: {config_map: Company CA}", "certificates.config_map"),
        ("train: {gpus: 1}\ntrain: {retries: 3}", "has 'train' twice in one mapping"),
        ("a: &x [1]\nb: *x", "holds an alias"),
        ("train: [", "is not YAML (line 1)"),
        ("train: {timeout: 2026-99-99}", "is not YAML"),
        (f"train: {{gpus: {'9' * 5000}}}", "is not YAML"),
        ("[" * 1500, "is not YAML"),
        ("x: " + "a" * MOST_BYTES, "is larger than 64 KiB"),
    ],
)
def test_bad_input_names_the_key_and_what_would_be_right(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_deployment(file)
    assert says in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_file_that_is_not_there_or_not_text(file: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        read_deployment(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not YAML"):
        read_deployment(file)


@pytest.mark.parametrize("uri", ["s3://me:hunter2@bucket/key", "s3://hunter2@bucket/key", "s3://bucket/key?secret=hunter2"])
def test_credentials_in_an_address_are_refused_and_not_repeated(file: Path, uri: str) -> None:
    file.write_text(f"resume: {uri}\n")
    with pytest.raises(InputError, match="holds credentials") as error:
        read_deployment(file)
    assert "hunter2" not in str(error.value)


_NAMES = [f.name for kind in (Deployment, TaskClass, Source, Volume, Toleration) for f in fields(kind)]
_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["4Gi", "2", "1h", "/a", "s3://b"])
)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(), inner, max_size=4)
)


@given(_VALUES)
def test_any_document_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=False))
    with contextlib.suppress(InputError):
        assert isinstance(read_deployment(path), Deployment)


def keys() -> Iterator[tuple[str, str, str]]:
    """Every key of a deployment file with its default and what it is, as docs/deployment.md has them."""

    def of(kind: type, prefix: str) -> Iterator[tuple[str, str, str]]:
        for f in fields(kind):
            default = f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc]
            name = f"{prefix}{f.name}"
            if name in CLASSES:
                continue
            if name == "certificates":
                yield from of(CertificateAuthority, "certificates.")
            elif name == "environment":
                yield name + "[]", "see below", f.metadata["help"]
                yield from of(Source, "environment[].")
            elif name == "volumes":
                yield name + "[]", "", f.metadata["help"]
                yield from of(Volume, "volumes[].")
            elif f.name == "tolerations":
                yield name + "[]", "", f.metadata["help"]
                yield from of(Toleration, f"{prefix}tolerations[].")
            else:
                shown = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
                yield name, f"`{shown}`" if shown not in ("", None, (), {}) else "", f.metadata["help"]

    yield from of(Deployment, "")
    yield from of(TaskClass, "CLASS.")


def rows() -> list[str]:
    return [f"| `{name}` | {default} | {help.replace('|', '/')} |" for name, default, help in keys()]


def class_rows() -> list[str]:
    base, site = TaskClass(), Deployment()
    found = []
    for f in fields(Deployment):
        if f.name in CLASSES:
            own = [
                f"`{g.name}: {getattr(site.of(f.name), g.name)}`"
                for g in fields(TaskClass)
                if getattr(site.of(f.name), g.name) != getattr(base, g.name)
            ]
            found.append(f"| `{f.name}` | {f.metadata['help']} | {', '.join(own)} |")
    return found


def test_the_document_lists_every_key_with_its_default() -> None:
    lines = (ROOT / "docs" / "deployment.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("| `")]
    assert tables == rows() + class_rows()


def test_the_example_has_every_key() -> None:
    path = MANIFESTS / "deployment.yaml"
    site = read_deployment(path)
    assert site.parameters == {"device": "cuda", "threads": 8, "workers_per_task": 1, "check_services": True}
    assert site != Deployment()
    document = yaml.safe_load(path.read_text())
    assert set(document) == {f.name for f in fields(Deployment)}
    assert set(document["train"]) == {f.name for f in fields(TaskClass)}
    assert set(document["volumes"][0]) == {f.name for f in fields(Volume)}
    assert {key for t in document["train"]["tolerations"] for key in t} == {f.name for f in fields(Toleration)}
    assert {key for source in document["environment"] for key in source} == {f.name for f in fields(Source)}


def manifest_keys(path: Path, kind: str) -> tuple[str, set[str]]:
    """Name of a ConfigMap or Secret, and its keys, those that are commented out among them."""
    text = path.read_text()
    document = yaml.safe_load(text)
    assert document["kind"] == kind
    commented = set(re.findall(r"^  # ([A-Z0-9_]+): ", text, re.MULTILINE))
    return document["metadata"]["name"], commented | set(document.get("data") or document["stringData"])


def test_the_manifests_provide_what_tasks_are_given() -> None:
    settings, credentials = Deployment().environment
    assert manifest_keys(MANIFESTS / "settings.yaml", "ConfigMap") == (settings.config_map, set(settings.variables.values()))
    assert manifest_keys(MANIFESTS / "credentials.yaml", "Secret") == (credentials.secret, set(credentials.variables.values()))
    claim = yaml.safe_load((MANIFESTS / "volume.yaml").read_text())
    (volume,) = read_deployment(MANIFESTS / "deployment.yaml").volumes
    assert claim["metadata"]["name"] == volume.claim


@pytest.mark.parametrize("name", ["settings", "credentials", "access", "volume", "mlflow", "disk"])
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    import kubernetes_validate

    for document in yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()):
        for version in ("1.31", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_manifest_of_mlflow_sets_what_its_server_reads() -> None:
    # Its source, not the module: that takes ten seconds to import.
    package = Path(importlib.util.find_spec("mlflow").origin).parent  # type: ignore[union-attr, arg-type]
    sources = [*package.glob("cli/*.py"), *package.glob("cli.py"), package / "environment_variables.py"]
    read = {name for path in sources for name in re.findall(r"\bMLFLOW_[A-Z0-9_]+\b", path.read_text())}
    documents = {d["kind"]: d for d in yaml.safe_load_all((MANIFESTS / "mlflow.yaml").read_text())}
    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    assert {name for name in environment if name.startswith("MLFLOW_")} <= read
    # What tasks call it by default reaches it, by a name that it allows.
    service = documents["Service"]
    uri = yaml.safe_load((MANIFESTS / "settings.yaml").read_text())["data"]["MLFLOW_TRACKING_URI"]
    assert uri == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert "command" not in container, "the image's own entry point gives PostgreSQL's address its driver"
    # From other namespaces too, KFP's among them.
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    for called in (name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"):
        assert {called, f"{called}:*"} <= set(hosts)
    assert not any(" " in host for host in hosts)
