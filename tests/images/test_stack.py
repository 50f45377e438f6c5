"""docker/compose.yaml, brought up by `make stack-up` with a real compose and a real engine.

The tests' engine has no bridge, so that services get the host's network and free ports; PostgreSQL and SeaweedFS run in
stand-ins for their images, with Debian's and PyPI's programs inside. All else is the file's own.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.manifests import Site, render
from rco.tracking.context import Context
from tests import servers
from tests.images.conftest import ROOT, Built, Checkout, step

PASSWORDS = {"POSTGRES_PASSWORD": "p@ss:w/rd%20#'x", "S3_ACCESS_KEY": "rco", "S3_SECRET_KEY": "secret/of+the=store"}
COMPOSE = "docker-compose"
# SeaweedFS's own; those for gRPC would else be 10,000 higher, and there may be no such port.
_STORE_PORTS = (
    *("master.port", "volume.port", "filer.port"),
    *("master.port.grpc", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc"),
)
_STANDIN = """
FROM {base}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql wget
COPY weed /usr/local/bin/
COPY postgres.sh /usr/local/bin/
ENTRYPOINT ["sh", "/usr/local/bin/postgres.sh"]
"""
# As much of the official image's entry point as compose.yaml relies on.
_POSTGRES = r"""
set -eu
bin=$(echo /usr/lib/postgresql/*/bin) data=/var/lib/postgresql/data
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
if [ ! -s $data/PG_VERSION ]; then
    chown postgres $data
    printf %s "$POSTGRES_PASSWORD" > /tmp/password && chown postgres /tmp/password
    as_postgres $bin/initdb -D $data --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | as_postgres $bin/postgres --single -D $data postgres
fi
exec setpriv --reuid postgres --regid postgres --init-groups $bin/postgres -D $data \
    -c listen_addresses=127.0.0.1 -c port=$PGPORT -c unix_socket_directories=/tmp
"""


def resolved(environment: dict[str, str]) -> dict[str, Any]:
    """compose.yaml as the real compose reads it."""
    command = [COMPOSE, "--file", str(ROOT / "docker" / "compose.yaml"), "config"]
    done = subprocess.run(command, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    document: dict[str, Any] = yaml.safe_load(done.stdout)
    return document


class TestFile:
    @pytest.mark.parametrize("missing", [*PASSWORDS, "MLFLOW_IMAGE"])
    def test_it_refuses_to_start_without_passwords(self, missing: str) -> None:
        given = {**PASSWORDS, "MLFLOW_IMAGE": "x"}
        resolved(given)
        for left in ({k: v for k, v in given.items() if k != missing}, {**given, missing: ""}):
            with pytest.raises(ValueError, match="Missing mandatory value"):
                resolved(left)

    def test_ports_are_open_on_loopback_alone_and_images_are_pinned(self) -> None:
        services = resolved({**PASSWORDS, "MLFLOW_IMAGE": "rco-mlflow:t"})["services"]
        assert set(services) == {"database", "storage", "bucket", "mlflow"}
        ports = [str(port) for service in services.values() for port in service.get("ports", ())]
        assert sorted(ports) == ["127.0.0.1:5000:5000/tcp", "127.0.0.1:8333:8333/tcp"]
        for name, service in services.items():
            tag = service["image"].rpartition(":")[2]
            assert tag
            assert tag != "latest"
            assert "healthcheck" in service or name == "bucket"
            assert service["restart"] == ("no" if name == "bucket" else "unless-stopped")

    def test_no_password_is_on_a_command_line(self) -> None:
        services = resolved({**PASSWORDS, "MLFLOW_IMAGE": "x"})["services"]
        words = str([[s.get("command"), s.get("entrypoint"), s.get("healthcheck")] for s in services.values()])
        assert not [value for name, value in PASSWORDS.items() if name != "S3_ACCESS_KEY" and value in words]

    def test_the_example_names_what_is_needed(self) -> None:
        lines = (ROOT / "docker" / "env.example").read_text().splitlines()
        assert {line for line in lines if line and not line.startswith("#")} == {f"{name}=" for name in PASSWORDS}


@dataclass(frozen=True)
class Stack:
    """A checkout whose compose.yaml suits the tests' engine."""

    checkout: Checkout
    mlflow: str
    s3: str
    database: int

    def make(self, target: str, *settings: str) -> str:
        return self.checkout.make(target, f"COMPOSE={COMPOSE}", *settings)


@pytest.fixture(scope="module")
def stack(built: Built, checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    engine = checkout.engine
    context = tmp_path_factory.mktemp("standin")
    shutil.copy(Path(sysconfig.get_path("scripts")) / "weed", context)
    (context / "Dockerfile").write_text(_STANDIN.format(base=checkout.base_image))
    (context / "postgres.sh").write_text(_POSTGRES)
    with step("stand-ins for PostgreSQL and SeaweedFS"):
        engine.docker("build", "--network", "host", "-t", "stack-standin:1", str(context))
    ports = {name: servers.free_port() for name in ("mlflow", "s3", "database", *_STORE_PORTS)}
    root = tmp_path_factory.mktemp("stack") / "rco"
    shutil.copytree(checkout.root, root)
    document = resolved({**PASSWORDS, "MLFLOW_IMAGE": "mlflow"})
    (root / "docker" / "compose.yaml").write_text(yaml.safe_dump(on_the_host(document, ports)))
    settings = {**PASSWORDS, "MLFLOW_PORT": ports["mlflow"]}
    (root / "docker" / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    own = Stack(
        replace(checkout, root=root),
        f"http://127.0.0.1:{ports['mlflow']}",
        f"http://127.0.0.1:{ports['s3']}",
        ports["database"],
    )
    try:
        with step("make stack-up"):
            said = own.make("stack-up")
        assert f"MLflow: {own.mlflow}" in said
        yield own
    finally:
        with step("make stack-down"):
            own.make("stack-down", "ARGS=--volumes")


def on_the_host(document: dict[str, Any], ports: dict[str, int]) -> dict[str, Any]:
    """The same services with the host's network, on free ports of the loopback interface, from images that are there."""
    swaps = {
        "http://storage:8333": f"http://storage:{ports['s3']}",
        "127.0.0.1:8333": f"127.0.0.1:{ports['s3']}",
        "-s3.port=8333": f"-s3.port={ports['s3']}",
        "0.0.0.0": "127.0.0.1",
        "--port=5000": f"--port={ports['mlflow']}",
        "127.0.0.1:5000/health": f"127.0.0.1:{ports['mlflow']}/health",
        "5432": str(ports["database"]),
    }

    def swapped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: swapped(each) for name, each in value.items()}
        if isinstance(value, list):
            return [swapped(each) for each in value]
        if isinstance(value, str):
            for old, new in swaps.items():
                value = value.replace(old, new)
        return value

    for name, service in document["services"].items():
        service.pop("ports", None)
        document["services"][name] = swapped(service)
    services = document["services"]
    for service in services.values():
        service["network_mode"] = "host"
        service["extra_hosts"] = ["storage:127.0.0.1", "database:127.0.0.1"]
        service["restart"] = "no"
    services["database"]["image"] = services["storage"]["image"] = "stack-standin:1"
    services["bucket"]["image"] = services["mlflow"]["image"] = "${MLFLOW_IMAGE}"
    services["database"]["environment"]["PGPORT"] = str(ports["database"])
    services["storage"]["command"] += [f"-{name}={ports[name]}" for name in _STORE_PORTS]
    return document


def client(stack: Stack) -> Any:
    """As the pipeline has it."""
    return Context(tracking_uri=stack.mlflow, pipeline_run="").client()


def objects(stack: Stack, secret: str) -> list[str]:
    import boto3

    s3 = boto3.client(
        "s3",
        endpoint_url=stack.s3,
        aws_access_key_id=PASSWORDS["S3_ACCESS_KEY"],
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    return [each["Key"] for each in s3.list_objects_v2(Bucket="mlflow").get("Contents", ())]


def test_runs_and_artifacts_survive_the_stack(stack: Stack, tmp_path: Path) -> None:
    import botocore.exceptions
    import mlflow
    import psycopg2

    c = client(stack)
    name = f"stack-{uuid.uuid4().hex[:8]}"
    run = c.create_run(c.create_experiment(name))
    (tmp_path / "anchor.bin").write_bytes(bytes(range(256)) * 4096)
    # Nothing of the store's credentials is in this process: artifacts go through the server.
    c.log_artifact(run.info.run_id, str(tmp_path / "anchor.bin"))
    c.log_metric(run.info.run_id, "accuracy", 0.5, step=3)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    keys = objects(stack, PASSWORDS["S3_SECRET_KEY"])
    assert [key for key in keys if key.endswith(f"{run.info.run_id}/artifacts/anchor.bin")]
    with pytest.raises(botocore.exceptions.ClientError, match="Signature"):
        objects(stack, "wrong")
    login = {"host": "127.0.0.1", "port": stack.database, "user": "mlflow", "dbname": "mlflow"}
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(**login, password="wrong")
    with psycopg2.connect(**login, password=PASSWORDS["POSTGRES_PASSWORD"]) as database, database.cursor() as cursor:
        cursor.execute("SELECT value FROM metrics WHERE run_uuid = %s", (run.info.run_id,))
        assert cursor.fetchall() == [(0.5,)]
    stack.make("stack-down", "ARGS=")
    stack.make("stack-up")
    again = client(stack)
    assert again.get_run(run.info.run_id).data.metrics == {"accuracy": 0.5}
    fetched = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="anchor.bin", dst_path=str(tmp_path / "b")
    )
    assert Path(fetched).read_bytes() == (tmp_path / "anchor.bin").read_bytes()


def status(port: int, host: str, path: str = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default") -> int:
    """What the server on that port answers to who calls it by this name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status


def test_another_host_header_is_refused(stack: Stack) -> None:
    port = int(stack.mlflow.rpartition(":")[2])
    hosts = (f"127.0.0.1:{port}", "localhost", f"mlflow:{port}", "evil.example", f"evil.example:{port}")
    answers = {host: status(port, host) for host in hosts}
    assert list(answers.values()) == [200, 200, 200, 403, 403], answers


def as_kubernetes_starts_it(container: dict[str, Any], secret: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment of a manifest's container and its arguments: `env` wins over `envFrom`."""
    return {**secret, **{variable["name"]: variable["value"] for variable in container["env"]}}, list(container["args"])


def test_mlflow_comes_up_as_its_manifest_for_a_cluster_says(stack: Stack, built: Built) -> None:
    """What `rco cluster manifests mlflow` prints, in the image, with exactly its environment and a plain postgresql:// address.
    The tests' engine has the host's network alone: ports are others, and the server listens on the loopback interface."""
    import psycopg2

    documents = list(yaml.safe_load_all(render(Site(namespace="team-a"), ["mlflow"])))
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    confined = container["securityContext"]
    assert (confined["readOnlyRootFilesystem"], confined["capabilities"]) == (True, {"drop": ["ALL"]})
    login = {"host": "127.0.0.1", "port": stack.database, "user": "mlflow", "password": PASSWORDS["POSTGRES_PASSWORD"]}
    database = psycopg2.connect(**login, dbname="mlflow")
    database.autocommit = True
    with contextlib.closing(database), database.cursor() as cursor:
        cursor.execute("CREATE DATABASE manifest")
    password = urllib.parse.quote(PASSWORDS["POSTGRES_PASSWORD"], safe="")
    secret = {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow:{password}@127.0.0.1:{stack.database}/manifest",
        "AWS_ACCESS_KEY_ID": PASSWORDS["S3_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": PASSWORDS["S3_SECRET_KEY"],
    }
    assert container["envFrom"] == [{"secretRef": {"name": "rco-mlflow"}}]
    environment, words = as_kubernetes_starts_it(container, secret)
    environment["MLFLOW_S3_ENDPOINT_URL"] = environment["MLFLOW_S3_ENDPOINT_URL"].replace("8333", stack.s3.rpartition(":")[2])
    port = servers.free_port()
    words = [{"0.0.0.0": "127.0.0.1", "5000": str(port)}.get(word, word) for word in words]
    options = ["--network", "host", "--add-host", "seaweedfs:127.0.0.1", "--read-only", "--tmpfs", "/tmp:mode=1777"]
    options += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    options += [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    with step("MLflow as its manifest says"):
        name = built.engine.docker("run", "--detach", *options, built.mlflow, *words).stdout.strip()
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                # A probe of Kubernetes calls it by the address of its pod.
                assert status(port, f"10.0.0.7:{port}", container["readinessProbe"]["httpGet"]["path"]) == 200
                break
            time.sleep(0.5)
        c = Context(tracking_uri=f"http://localhost:{port}", pipeline_run="").client()
        run = c.create_run(c.create_experiment("manifest"))
        c.log_text(run.info.run_id, "kept", "note.txt")
        assert [
            key for key in objects(stack, PASSWORDS["S3_SECRET_KEY"]) if key.endswith(f"{run.info.run_id}/artifacts/note.txt")
        ]
        hosts = ("rco-mlflow:5000", "rco-mlflow.team-a:5000", "rco-mlflow.team-a.svc.cluster.local:5000", "evil.example")
        assert [status(port, host) for host in hosts] == [200, 200, 200, 403]
    finally:
        said = built.engine.docker("logs", name, check=False)
        built.engine.docker("rm", "--force", name)
        print((said.stdout + said.stderr)[-2000:])
    with contextlib.closing(psycopg2.connect(**login, dbname="manifest")) as database, database.cursor() as cursor:
        cursor.execute("SELECT run_uuid FROM runs")
        assert cursor.fetchall() == [(run.info.run_id,)]


def test_a_run_of_the_pipeline_is_told_of_it(stack: Stack) -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "-f", "Makefile", "-f", "-", "shown", "STACK=compose", f"PYTHON={sys.executable}"],
        input="shown:\n\t@echo $$MLFLOW_TRACKING_URI\n",
        cwd=stack.checkout.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == stack.mlflow
