"""`rco submit` and `rco upload` over HTTP, against a stub of KFP's API; and KFP's own command line against the same stub."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.cli.main import main
from pipelines.cluster import service as service_module
from pipelines.cluster import submit as submit_module
from pipelines.cluster import watch as watch_module
from pipelines.cluster.deployment import Deployment
from pipelines.cluster.package import Package, compile_package, uncached
from pipelines.cluster.placement import Cluster
from pipelines.cluster.service import Pace, Service, ServiceError
from pipelines.cluster.submit import Request, ensure, start, upload
from pipelines.cluster.watch import Watcher
from pipelines.compile import compile_to
from rco.config.branches import Comparison
from rco.config.shape import Shape
from rco.core.errors import InputError
from rco.tasks.validate import shape_of
from tests.kfp_stub import ENDLESS, FAILS, LOGIN_PAGE, UI_PAGE, Fault, KfpStub
from tests.servers import free_port

CANARY = "canary-7f3a9c51d2"
STAGES = [f"stage-{k} {task}" for k in (1, 2) for task in ("select-anchors", "distill-students")]

pytestmark = pytest.mark.usefixtures("quick_and_alone")


@pytest.fixture
def rco(stub: KfpStub, rco_yaml: Path) -> Callable[..., Result]:
    """`rco COMMAND ...` at the stub; submit takes a package that is compiled already."""

    def invoke(command: str, *arguments: str) -> Result:
        package = ["--package", str(rco_yaml)] if command == "submit" and "--package" not in arguments else []
        return CliRunner().invoke(main, [command, "--endpoint", stub.address, *package, *arguments])

    return invoke


def wait(service: Service, run_id: str, show: Callable[[str], None]) -> Any:
    return Watcher(service, run_id, show).wait()


def load_all(text: str) -> Iterator[Any]:
    return yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def only(things: dict[str, Any]) -> Any:
    (thing,) = things.values()
    return thing


# --- what is sent


def test_a_run_from_nothing_to_its_end(stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path) -> None:
    stub.tag = "2.17.0"
    done = rco("submit", "--recipe", "digits", "--tau", "3", "--no-download", "--milestones", "0.25,0.5", "--epochs", "9")
    assert done.exit_code == 0, done.output
    run = only(stub.runs)
    sent = run.runtime_config.parameters
    assert (sent["tau"], sent["milestones"], sent["epochs"], sent["lam"]) == (3.0, [0.25, 0.5], 9, "tau^2")
    assert sent["download"] is False
    assert "batch_size" not in sent, "what nobody set is the package's"
    assert only(stub.pipelines).display_name == "route-constrained-optimization"
    version = only(stub.versions)
    assert version.display_name == Package.read(rco_yaml).version
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert only(stub.packages) == rco_yaml.read_bytes()
    assert only(stub.experiments).display_name == "rco"
    assert re.fullmatch(r"digits-cnn-s greedy \d{8}-\d{6}-[0-9a-f]{4}", run.display_name)
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in done.output.splitlines()]
    assert f"run        {stub.address}/#/runs/details/{run.run_id}" in lines
    # Every task once, in the order of the graph, however KFP lists it.
    assert lines[lines.index("check: running") :] == [
        *("check: running", "check: succeeded after 2 min"),
        *("prepare-data: from the cache", "train-teacher: running"),
        *("init-students: succeeded", "train-teacher: succeeded after 2 min"),
        *(f"{task}: succeeded" for task in (*STAGES, "evaluate-students", "register-student", "report")),
        *("close-run: succeeded after 2 min", "the run succeeded"),
    ]


def test_the_same_package_is_there_once(stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path, tmp_path: Path) -> None:
    first, second = rco("submit", "--no-wait"), rco("submit", "--no-wait")
    assert "(uploaded)" in first.output
    assert "(was there)" in second.output
    assert (len(stub.pipelines), len(stub.versions), len(stub.experiments), len(stub.runs)) == (1, 1, 1, 2)
    assert len({run.display_name for run in stub.runs.values()}) == 2
    changed = tmp_path / "rco.yaml"
    changed.write_text(rco_yaml.read_text() + "# another\n")
    assert rco("submit", "--no-wait", "--package", str(changed)).exit_code == 0
    assert (len(stub.pipelines), len(stub.versions)) == (1, 2)


def test_what_is_on_a_later_page_is_found(stub: KfpStub, rco_yaml: Path) -> None:
    service = Service(stub.address)
    again = upload(service, Package.read(rco_yaml))
    for number in range(3):
        twin = type(only({again.pipeline_id: stub.pipelines[again.pipeline_id]}))(
            display_name="route-constrained-optimization", name=f"twin-{number}", pipeline_id=f"twin-{number}"
        )
        stub.pipelines = {f"twin-{number}": twin, **stub.pipelines}
    stub.page = 1
    assert upload(service, Package.read(rco_yaml)) == submit_module.Uploaded(again.pipeline_id, again.version_id, False)


def test_two_people_at_once_make_one_version(stub: KfpStub, rco_yaml: Path) -> None:
    # Both are told that there is nothing yet, of the pipeline and of its version.
    looks = (r"GET .*/pipelines$", r"GET .*/versions$")
    stub.faults = [Fault(look, times=2, meet=threading.Barrier(2)) for look in looks]
    package, services = Package.read(rco_yaml), [Service(stub.address) for _ in range(2)]
    made: list[submit_module.Uploaded] = []
    threads = [threading.Thread(target=lambda s=s: made.append(upload(s, package))) for s in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stub.asked(r"POST .*/pipelines$"), stub.asked("POST .*/upload_version$")) == (2, 2)
    assert (len(stub.pipelines), len(stub.versions)) == (1, 1)
    assert len({(u.pipeline_id, u.version_id) for u in made}) == 1
    assert sorted(u.new for u in made) == [False, True]


def test_a_conflict_is_one_that_exists() -> None:
    there: list[str] = []

    def make() -> str:
        there.append("theirs")
        raise ServiceError("conflict", status=409)

    assert ensure(lambda: there[0] if there else None, make) == ("theirs", False)
    with pytest.raises(ServiceError, match="no"):
        ensure(lambda: None, lambda: (_ for _ in ()).throw(ServiceError("no", status=409)))


@pytest.mark.parametrize("what", ["pipelines$", "upload_version", "experiments$", "runs$"])
@pytest.mark.parametrize("status", [0, 503])
def test_an_answer_that_was_lost_makes_nothing_twice(stub: KfpStub, rco: Callable[..., Result], what: str, status: int) -> None:
    stub.faults = [Fault(f"POST .*{what}", status=status, late=True)]
    done = rco("submit", "--no-wait")
    assert done.exit_code == 0, done.output
    assert [len(things) for things in (stub.pipelines, stub.versions, stub.experiments, stub.runs)] == [1, 1, 1, 1]


def test_a_run_of_the_same_name_is_another_run(stub: KfpStub, rco: Callable[..., Result]) -> None:
    stub.faults = [Fault(r"POST .*/runs$", status=503, times=1)]
    assert rco("submit", "--no-wait", "--name", "mine").exit_code == 0
    assert rco("submit", "--no-wait", "--name", "mine").exit_code == 0
    assert [run.display_name for run in stub.runs.values()] == ["mine", "mine"]


def test_options_reach_the_run(stub: KfpStub, rco: Callable[..., Result]) -> None:
    words = ["--name", "n", "--service-account", "sa", "--pipeline-root", "s3://b/p", "--experiment", "mine"]
    assert rco("submit", "--no-wait", *words).exit_code == 0
    run = only(stub.runs)
    assert (run.display_name, run.service_account, run.runtime_config.pipeline_root) == ("n", "sa", "s3://b/p")
    assert only(stub.experiments).display_name == "mine"
    assert run.runtime_config.parameters["experiment"] == "mine", "MLflow's and KFP's experiments have one name"


def test_a_comparison(stub: KfpStub, rco: Callable[..., Result], comparison_yaml: Path) -> None:
    words = ["--pipeline", "comparison", "--package", str(comparison_yaml), "--seeds", "0,1"]
    done = rco("submit", "--no-wait", "--recipe", "digits", *words)
    assert done.exit_code == 0, done.output
    sent = only(stub.runs).runtime_config.parameters
    assert sent["seeds"] == [0, 1]
    assert not {"branches", "grid"} & set(sent), "the package has them"
    assert (sent["student"], sent["teacher_epochs"]) == ("digits-cnn-s", 40)
    assert "strategy" not in sent, "a recipe of a run serves, without what a comparison decides itself"
    assert only(stub.pipelines).display_name == "route-constrained-optimization-comparison"


def test_a_package_says_what_it_compares(stub: KfpStub, rco: Callable[..., Result], tmp_path: Path) -> None:
    shape = shape_of(Comparison.of({"branches": ["kd", "checkpoint-ensemble"], "grid": {"tau": [2, 4]}}))
    path = compile_to(tmp_path / "ours.yaml", shape)
    assert Package.read(path).compared == {"branches": ["kd", "checkpoint-ensemble"], "grid": {"tau": [2.0, 4.0]}}
    words = ["submit", "--dry-run", "--pipeline", "comparison", "--package", str(path)]
    done = rco(*words, "--members", "2", "--teacher-epochs", "30")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["run"]["runtime_config"]["parameters"] == {"members": 2, "teacher_epochs": 30}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("members: 2\nbranches: [kd, checkpoint-ensemble]\n")
    done = rco(*words, "--recipe", str(recipe))
    assert json.loads(done.output)["run"]["runtime_config"]["parameters"] == {"members": 2}, done.output
    recipe.write_text("branches: [kd, greedy]\n")
    done = rco(*words, "--recipe", str(recipe))
    assert done.exit_code == 2
    assert "branches = ['kd', 'greedy']: of the recipe" in done.output
    assert "is not what the package was compiled for" in done.output
    done = rco(*words, "--delta", "2")
    assert "delta = 2.0: means nothing with branches = kd, checkpoint-ensemble" in done.output
    done = rco("submit", "--dry-run", "--package", str(path))
    assert "pipeline = 'rco': is not what is in" in done.output
    assert "Give --pipeline comparison" in done.output
    assert stub.requests == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--pipeline", "comparison"], "Give --pipeline rco"),
        (["--tau", "0"], "tau = 0"),
        (["--branches", "kd"], "branches = 'kd': is of the comparison alone"),
        (["--pipeline", "comparison", "--strategy", "greedy"], "strategy = 'greedy': means nothing in a comparison"),
        (["--pipeline", "comparison", "--grid", "[1]"], "grid = '[1]': is not a mapping"),
        (["--pipeline", "comparison", "--branches", "kd,greedy"], "branches = 'kd,greedy': changes nothing about a package"),
        (["--pipeline", "comparison", "--grid", '{"tau": [2]}'], "grid = {'tau': [2]}: changes nothing about a package"),
        (["--recipe", "nothere"], "is neither a recipe nor a file"),
        (["--timeout", "soon"], "timeout = 'soon': is not a length of time"),
        (["--max-stages", "3"], "max_stages = 3: changes nothing about a package"),
        (["--package", "nothere.yaml"], "package = 'nothere.yaml': is not a file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    stub: KfpStub, rco: Callable[..., Result], words: list[str], told: str
) -> None:
    done = rco("submit", *words)
    assert done.exit_code == 2, done.output
    assert told in done.output
    assert stub.requests == []


def test_packages_that_are_none(tmp_path: Path, rco_yaml: Path) -> None:
    good = rco_yaml.read_text()
    cases = {
        "a.txt": (good, "is not named .yaml"),
        "b.yaml": ("a: [\n", "is not YAML"),
        "c.yaml": ("kind: Workflow\n", "was compiled with KFP 1"),
        "d.yaml": ("- 1\n", "is not a pipeline"),
        "e.yaml": ("a: 1\n", "is not a pipeline of KFP"),
        "f.yaml": ("pipelineInfo:\n  name: x\n", "has no name or no root"),
        "g.yaml": (good.split("\n---\n")[0] + "\n---\nplatforms: 3\n", "is not a pipeline of KFP"),
        "h.yaml": (good[: good.index("\nroot:") // 2], "package = "),
    }
    for name, (content, told) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=told):
            Package.read(tmp_path / name)


def test_a_package_of_another_version_is_asked_for_what_it_has(
    stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path, tmp_path: Path
) -> None:
    first, second = load_all(rco_yaml.read_text())
    parameters = first["root"]["inputDefinitions"]["parameters"]
    parameters.pop("views")
    parameters["tau"]["parameterType"] = "STRING"
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump_all([first, second]))
    for words, told in (
        (["--views", "2"], "views = 2: is not a parameter of the package old.yaml"),
        (["--tau", "3"], "STRING"),
    ):
        done = rco("submit", "--package", str(old), *words)
        assert done.exit_code == 2
        assert told in done.output
    assert stub.requests == []
    assert rco("submit", "--package", str(old), "--no-wait").exit_code == 0


def test_compiled_where_it_is_sent(stub: KfpStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(*words: str) -> str:
        stub.packages.clear()
        done = CliRunner().invoke(main, ["submit", "--endpoint", stub.address, "--no-wait", *words])
        assert done.exit_code == 0, done.output
        return next(iter(stub.packages.values()), b"").decode()

    assert "stage-6" in sent("--n-anchors", "6", "--epochs", "60")
    usual = sent("--n-anchors", "2")
    assert "stage-4" in usual
    assert "stage-5" not in usual
    monkeypatch.setenv("RCO_IMAGE", "registry.example.com/rco@sha256:" + "0" * 64)
    (tmp_path / "site.yaml").write_text("train: {gpus: 1}\n")
    mine = sent("--deployment", str(tmp_path / "site.yaml"))
    assert "nvidia.com/gpu" in mine
    assert "nvidia.com/gpu" not in usual
    assert "registry.example.com/rco@sha256:" in mine
    (tmp_path / "site.yaml").write_text("train: {gpu: 1}\n")
    for words, told in (
        (["--n-anchors", "6", "--max-stages", "5"], "max_stages = 5: is not enough"),
        (["--deployment", str(tmp_path / "site.yaml")], "gpu"),
    ):
        asked = len(stub.requests)
        done = CliRunner().invoke(main, ["submit", "--endpoint", stub.address, *words])
        assert (done.exit_code, told in done.output) == (2, True), done.output
        assert len(stub.requests) == asked


def test_dry_run_connects_to_nothing(stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path) -> None:
    done = rco("submit", "--dry-run", "--tau", "3", "--namespace", "me")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.output)
    assert shown["run"]["runtime_config"]["parameters"] == {"tau": 3.0}
    assert shown["pipeline_version"]["display_name"] == Package.read(rco_yaml).version
    assert (shown["experiment"]["display_name"], shown["namespace"]) == ("rco", "me")
    assert stub.requests == []


def test_no_cache_reaches_the_tasks_of_every_stage(rco_yaml: Path, tmp_path: Path) -> None:
    package = Package.read(rco_yaml)
    without = uncached(package, tmp_path)

    def cached(path: Path) -> int:
        first = next(load_all(path.read_text()))
        dags = [c["dag"] for c in (first["root"], *first["components"].values()) if "dag" in c]
        return sum(t.get("cachingOptions", {}).get("enableCache", False) for dag in dags for t in dag["tasks"].values())

    assert cached(package.path) > 5
    assert cached(without.path) == 0
    assert without.version != package.version
    assert (without.parameters, without.images, without.name) == (package.parameters, package.images, package.name)
    assert uncached(package, tmp_path).version == without.version
    # Nothing else has changed.
    lines = [re.sub(r"\s", "", line) for line in package.path.read_text().splitlines() if "achingOptions" in line]
    assert lines
    for before, after in zip(*(list(load_all(p.path.read_text())) for p in (package, without)), strict=True):
        assert without_caching(before) == after


def test_no_cache_has_no_result_found_either(tmp_path: Path) -> None:
    cluster = Cluster(deployment=Deployment(resume="s3://bucket/points"))

    def told(package: Package) -> set[str]:
        executors = next(load_all(package.path.read_text()))["deploymentSpec"]["executors"].values()
        variables = [v for e in executors for v in e["container"].get("env", ()) if v["name"] == "RCO_RESULTS"]
        assert len(variables) > 3
        return {variable["value"] for variable in variables}

    assert told(compile_package(Shape.of_run(1), tmp_path, cluster)) == {"s3://bucket/points/results"}
    assert told(compile_package(Shape.of_run(1), tmp_path, cluster, cache=False)) == {""}


def without_caching(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: without_caching(value) for key, value in node.items() if key != "cachingOptions"}
    return [without_caching(item) for item in node] if isinstance(node, list) else node


def test_a_package_has_one_name_whoever_compiles_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.cluster.package import compile_package;"
        "from rco.config.shape import Shape;"
        "print(compile_package(Shape.of_run(2), Path(sys.argv[1])).version)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == compile_package(Shape.of_run(2), tmp_path).version


def test_upload_alone(stub: KfpStub, rco: Callable[..., Result]) -> None:
    first, second = rco("upload"), rco("upload")
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    names = sorted(pipeline.display_name for pipeline in stub.pipelines.values())
    assert names == ["route-constrained-optimization", "route-constrained-optimization-comparison"]
    assert len(stub.versions) == 2
    assert (first.output.count("(uploaded)"), second.output.count("(was there)")) == (2, 2)
    assert stub.runs == {}


def test_upload_of_packages(stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path, comparison_yaml: Path) -> None:
    assert rco("upload", str(rco_yaml), str(comparison_yaml)).exit_code == 0
    assert set(stub.packages.values()) == {rco_yaml.read_bytes(), comparison_yaml.read_bytes()}


# --- watching


def test_how_a_run_ends_is_the_exit_status(stub: KfpStub, rco: Callable[..., Result]) -> None:
    stub.script = FAILS
    done = rco("submit")
    assert done.exit_code == 1
    assert "the run ended as FAILED" in done.output
    assert "train-teacher: its log is gone: KFP deletes a workflow" in done.output
    run = only(stub.runs).run_id
    command = (
        rf"log: kubectl logs -n kubeflow \$\(kubectl get pods -n kubeflow -l pipeline/runid={run} -o name \| grep -- -\d+\$\)"
    )
    assert re.search(command, done.output)
    for state in ("CANCELED", "SKIPPED"):
        stub.script = (("RUNNING", {}), (state, {}))
        done = rco("submit")
        assert (done.exit_code, f"ended as {state}" in done.output) == (1, True)


def test_a_run_that_is_terminated(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = ENDLESS
    service = Service(stub.address)
    package = Package.read(rco_yaml)
    run = start(service, package, upload(service, package), Request(name="n", experiment="e", parameters={}))
    service.call(service.client.runs.run_service_terminate_run, run_id=run.run_id)
    assert wait(service, run.run_id, print).state == "FAILED"  # as the service says it


def test_trouble_on_the_way_is_waited_out_and_told_once(stub: KfpStub, rco: Callable[..., Result]) -> None:
    stub.faults = [
        Fault(r"GET .*/runs/", status=503, times=4),
        Fault(r"GET .*/runs/", status=0, times=3),
        Fault(r"GET .*/runs/", status=429, times=1),
        Fault(r"GET .*/runs/", status=502, body="<html>Bad Gateway</html>", times=1),
        Fault(r"GET .*/runs/", status=404, times=2),
    ]
    done = rco("submit")
    assert done.exit_code == 0, done.output
    assert done.output.count("the run goes on, looking again") == 1
    assert done.output.count("is back") == 1
    assert "HTTP 503" in done.output


def test_trouble_that_does_not_end(stub: KfpStub, rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "WATCH", Pace(first=0.01, longest=0.01, patience=0.1))
    stub.faults = [Fault(r"GET .*/runs/", status=500, times=10**6)]
    done = rco("submit")
    assert done.exit_code == 3
    assert f"rco wait --endpoint {stub.address} {only(stub.runs).run_id}" in done.output


def test_a_run_that_disappears(stub: KfpStub, rco: Callable[..., Result]) -> None:
    stub.faults = [Fault(r"GET .*/runs/", status=404, body={"code": 5, "message": "Run not found"}, times=10**6)]
    done = rco("submit")
    assert done.exit_code == 1
    assert "it was deleted, or is another service's" in done.output
    assert rco("wait", "no-such-run").exit_code == 1


def test_time_to_wait_is_over(stub: KfpStub, rco: Callable[..., Result]) -> None:
    stub.script = ENDLESS
    done = rco("submit", "--timeout", "0.2s")
    assert done.exit_code == 4
    run = only(stub.runs)
    assert f"kfp --endpoint {stub.address} run get {run.run_id}" in done.output
    assert stub.asked("terminate|DELETE") == 0
    stub.scripts[run.run_id] = (("SUCCEEDED", {}),)
    done = rco("wait", run.run_id)
    assert (done.exit_code, "the run succeeded" in done.output) == (0, True)


def _hear_ctrl_c() -> None:
    """Whoever runs the tests in the background may have had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_the_run_running(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = ENDLESS
    command = [sys.executable, "-m", "pipelines.cli", "submit", "--endpoint", stub.address, "--package", str(rco_yaml)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_ctrl_c)
    while stub.asked("GET .*/runs/") < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    run = only(stub.runs)
    assert process.returncode == 130, errors
    assert "the run goes on" in errors
    assert f"rco wait --endpoint {stub.address} {run.run_id}" in errors
    assert "Traceback" not in errors
    assert stub.asked("terminate|DELETE") == 0
    # Not a terminal: plain lines, no control characters.
    assert "train-teacher: running" in output
    assert "\x1b" not in output


def test_pauses_grow_and_are_bounded() -> None:
    pauses = Pace(first=1, longest=15).pauses()
    seen = [next(pauses) for _ in range(200)]
    assert all(0.5 <= pause <= 15 for pause in seen)
    assert max(seen[:3]) <= 2.25
    assert min(seen[50:]) >= 7.5


def test_mlflow_is_pointed_at_without_its_password(
    stub: KfpStub, rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://user:{CANARY}@mlflow.example.com/x")
    done = rco("submit", "--no-wait")
    line = f"MLflow     https://mlflow.example.com/x   (experiment rco, tags.`rco.pipeline_run` = '{only(stub.runs).run_id}')"
    assert line in done.output
    assert CANARY not in done.output


# --- who we are


def jwt(expiry: float) -> str:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": expiry}).encode()).decode().rstrip("=")
    return f"e30.{payload}.{CANARY}"


def test_a_token(stub: KfpStub, rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    stub.token = "right"
    done = rco("submit", "--no-wait")
    assert done.exit_code == 3
    assert "No credentials were sent. Set KFP_EXISTING_TOKEN" in done.output
    monkeypatch.setenv("KFP_EXISTING_TOKEN", f"wrong-{CANARY}")
    done = rco("submit", "--no-wait")
    assert done.exit_code == 3
    assert "The token in KFP_EXISTING_TOKEN may have expired" in done.output
    monkeypatch.setenv("KFP_EXISTING_TOKEN", jwt(time.time() - 60))
    assert "The token in KFP_EXISTING_TOKEN expired on" in rco("submit", "--no-wait").output
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "right\n")
    assert rco("submit", "--no-wait").exit_code == 0


def test_a_cookie(stub: KfpStub, rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    stub.cookie = "authservice_session=right"
    done = rco("submit", "--no-wait")
    assert done.exit_code == 3
    assert "a web page in place of the API (/dex/auth/local/login): it wants us to sign in" in done.output
    monkeypatch.setenv("KFP_COOKIES", "authservice_session=right")
    assert rco("submit", "--no-wait").exit_code == 0


def started(service: Service, path: Path) -> Any:
    package = Package.read(path)
    return start(service, package, upload(service, package), Request(name="n", experiment="e", parameters={}))


def test_a_service_accounts_token_that_is_renewed(
    stub: KfpStub, rco: Callable[..., Result], rco_yaml: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    done = rco("submit", "--no-wait")
    assert done.exit_code == 2
    assert "KF_PIPELINES_SA_TOKEN_PATH" in done.output
    file.write_text("first")
    stub.token, stub.script = "first", ENDLESS
    service = Service(stub.address)
    run = started(service, rco_yaml)

    def show(line: str) -> None:
        stub.token = "second"
        file.write_text("second")
        stub.scripts[run.run_id] = (("SUCCEEDED", {}),)

    assert wait(service, run.run_id, show).state == "SUCCEEDED"
    file.write_text(CANARY)
    done = rco("submit", "--no-wait")
    assert (done.exit_code, CANARY in done.output) == (3, False)
    assert f"The service account's token in {file} may have expired" in done.output


def test_a_cookie_of_kfps_context_file_that_is_renewed(stub: KfpStub, rco_yaml: Path, tmp_path: Path) -> None:
    def remember(cookie: str) -> None:
        stub.cookie = cookie
        (tmp_path / "context.json").write_text(json.dumps({"namespace": "", "client_authentication_cookie": cookie}))

    remember("s=first")
    stub.script = ENDLESS
    service = Service(stub.address)
    run = started(service, rco_yaml)

    def show(line: str) -> None:
        remember("s=second")
        stub.scripts[run.run_id] = (("SUCCEEDED", {}),)

    assert wait(service, run.run_id, show).state == "SUCCEEDED"
    # One that is not renewed ends the wait, after one more try.
    stub.scripts[run.run_id], stub.cookie = ENDLESS, "s=third"
    asked = stub.asked("GET .*/runs/")
    with pytest.raises(ServiceError, match="wants us to sign in") as caught:
        wait(service, run.run_id, show)
    assert caught.value.status == 401
    assert stub.asked("GET .*/runs/") == asked + 2


def test_a_header_of_kfps_context_file(stub: KfpStub, rco: Callable[..., Result], tmp_path: Path) -> None:
    stub.header = ("kubeflow-userid", "me@example.com")
    context = {"namespace": "", "client_authentication_header_name": "kubeflow-userid"}
    (tmp_path / "context.json").write_text(json.dumps({**context, "client_authentication_header_value": f"not {CANARY}"}))
    done = rco("submit", "--no-wait")
    assert done.exit_code == 3
    assert "does not allow this (RBAC: access denied for '***')" in done.output
    assert "context.json says may have expired" in done.output
    (tmp_path / "context.json").write_text(json.dumps({**context, "client_authentication_header_value": "me@example.com"}))
    assert rco("submit", "--no-wait").exit_code == 0


def echo(status: int) -> list[Fault]:
    """A service that says everything that it was told."""
    told = {"code": 13, "message": f"you said {CANARY} and s={CANARY}; and again: Bearer {CANARY}"}
    return [Fault(".", status=status, body=told, times=10**6)]


@pytest.mark.parametrize("variable", ["KFP_EXISTING_TOKEN", "KFP_COOKIES", "file", "context"])
@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 500, 0])
def test_secrets_are_never_shown(
    stub: KfpStub,
    rco: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    variable: str,
    status: int,
) -> None:
    caplog.set_level("WARNING")
    for name in ("ASK", "WATCH"):
        monkeypatch.setattr(
            service_module if name == "ASK" else watch_module, name, Pace(first=0.01, longest=0.01, patience=0.02)
        )
    if variable == "file":
        (tmp_path / "token").write_text(CANARY)
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    elif variable == "context":
        (tmp_path / "context.json").write_text(json.dumps({"namespace": "", "client_authentication_cookie": f"s={CANARY}"}))
    else:
        monkeypatch.setenv(variable, f"s={CANARY}" if "COOKIES" in variable else CANARY)
    # At the door, at an upload, and while a run is watched.
    for path in (".", "upload_version", "runs/"):
        stub.faults = echo(status)
        stub.faults[0].path = path
        if status == 302:
            stub.faults, stub.cookie = [], "another"
        if status == 200:
            stub.faults[0].body = f"<html>you said {CANARY}</html>"
        done = rco("submit")
        assert done.exit_code in (1, 2, 3), done.output
        assert CANARY not in done.output + caplog.text
        assert "Traceback" not in done.output
        # Nor where somebody else would print the exception.
        assert CANARY not in "".join(traceback.format_exception(done.exception))


def test_what_no_header_can_hold_is_refused_unseen(rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"{CANARY}\nSet-Cookie: x", f"{CANARY}\u2026"):
        monkeypatch.setenv("KFP_EXISTING_TOKEN", value)
        done = rco("submit")
        assert done.exit_code == 2
        assert "KFP_EXISTING_TOKEN = '(hidden)': has characters" in done.output
        assert CANARY not in done.output


# --- addresses and services


def at(endpoint: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["wait", "--endpoint", endpoint, "some-run", *words])


def test_addresses_that_lead_nowhere() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # bound, but nothing listens
        cases = {
            f"http://127.0.0.1:{deaf.getsockname()[1]}": "nothing listens there",
            "http://no-such-host.invalid": "there is no host of this name",
        }
        for endpoint, told in cases.items():
            done = at(endpoint)
            assert (done.exit_code, told in done.output) == (3, True), done.output
            assert endpoint in done.output
    for endpoint in ("ftp://x", "http://", "http://host:port", "http://h\u00f6st"):
        assert at(endpoint).exit_code == 2
    done = at(f"https://user:{CANARY}@example.com")
    assert (done.exit_code, CANARY in done.output) == (2, False)
    done = CliRunner().invoke(main, ["wait", "some-run"])
    assert done.exit_code == 2
    assert "endpoint = '': is not set. Give --endpoint, or set KFP_ENDPOINT" in done.output


def test_the_address_may_come_from_the_environment_or_from_the_browser(stub: KfpStub, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, f"{stub.address}/#/runs?a=b")
            assert Service().address == stub.address
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://ui.example.com/")
    assert Service(f"{stub.address}//").link("runs/details/1") == "https://ui.example.com/#/runs/details/1"


def test_a_path_before_the_api() -> None:
    with KfpStub(prefix="/pipeline").listening() as stub:
        assert Service(stub.address).link("x") == f"{stub.address}/#/x"
        done = at(stub.address.removesuffix("/pipeline"))
        assert done.exit_code == 3
        assert "knows no /apis/v2beta1/healthz" in done.output
        assert "On Kubeflow the address ends in /pipeline" in done.output


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("healthz", status=200, body=UI_PAGE), "KFP is older than 2.0, or the address has too long a path"),
        (Fault("healthz", status=200, body=LOGIN_PAGE), "it wants us to sign in"),
        (Fault("healthz", status=200, body=[1]), "not as KFP's API does"),
        (Fault("healthz", status=200, body={"apiServerReady": False}), "Look at the pod ml-pipeline"),
        (Fault("healthz", status=200, body={"tag_name": "1.8.5"}), "KFP 1.8.5 at http"),
        (Fault("healthz", status=404, body="<html>404</html>"), "it is not KFP's API"),
        (Fault("healthz", status=400, body="Client sent an HTTP request to an HTTPS server."), "with https://"),
        (Fault("healthz", status=502, body="<html>Bad Gateway</html>"), "has trouble: HTTP 502."),
        (Fault("healthz", status=0), "the connection was lost"),
    ],
)
def test_services_that_are_not_what_they_should_be(stub: KfpStub, fault: Fault, told: str) -> None:
    fault.times = 10  # the connection is tried again by itself
    stub.faults = [fault]
    done = at(stub.address)
    assert done.exit_code in (2, 3)
    assert told in f"{done.output.rstrip()}.", done.output


def test_an_older_service_is_warned_of(stub: KfpStub, rco: Callable[..., Result]) -> None:
    for tag, warned in (("2.4.1", True), ("2.17.0", False), ("2.18.0-rc.1", False), ("", False)):
        stub.tag = tag
        done = rco("submit", "--no-wait")
        assert done.exit_code == 0
        assert (f"KFP there is {tag}, older than" in done.output) == warned
        assert ("nested pipelines hand on artifacts from 2.5 on" in done.output) == warned


def test_a_pod_without_a_token_is_no_error(
    stub: KfpStub, rco: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    done = rco("submit", "--no-wait")
    logging.error("Failed to read a token from file '%s' (%s).", "/var/run/secrets/kubeflow/pipelines/token", "x")
    assert "Failed to read" not in done.output + "".join(capfd.readouterr())
    # Nor is there a link without a host.
    service = Service(stub.address)
    service.address = ""
    monkeypatch.delenv("KF_PIPELINES_UI_ENDPOINT", raising=False)
    assert service.link("runs/details/1") == ""


def test_what_the_service_says_of_what_it_refuses_is_passed_on(stub: KfpStub, rco: Callable[..., Result]) -> None:
    said = {"error_message": 'invalid v2 pipeline spec: unknown field "new"', "error_details": "at line 3"}
    stub.faults = [Fault("upload_version", status=400, body=said)]
    done = rco("submit")
    assert done.exit_code == 2
    assert 'refuses: HTTP 400 (invalid v2 pipeline spec: unknown field "new")' in done.output
    stub.faults = [Fault("upload_version", status=400, body={"error_message": "Pipeline upload authentication failed."})]
    assert rco("submit").exit_code == 3


def test_namespaces(rco_yaml: Path, tmp_path: Path) -> None:
    def invoke(*words: str) -> Result:
        command = ["submit", "--endpoint", stub.address, "--package", str(rco_yaml), "--no-wait", *words]
        return CliRunner().invoke(main, command)

    with KfpStub(multi_user=True).listening() as stub:
        done = invoke()
        assert done.exit_code == 2
        assert "namespace = '': is not set, and this KFP serves several" in done.output
        assert invoke("--namespace", "ann").exit_code == 0
        assert invoke("--namespace", "ben").exit_code == 0
        assert sorted(e.namespace for e in stub.experiments.values()) == ["ann", "ben"]
        assert sorted(p.namespace for p in stub.pipelines.values()) == ["ann", "ben"]
        (tmp_path / "namespace").write_text("of-the-pod\n")
        assert Service(stub.address).namespace == "of-the-pod"
        (tmp_path / "context.json").write_text('{"namespace": "of-the-context"}')
        assert Service(stub.address).namespace == "of-the-context"
        assert Service(stub.address, "mine").namespace == "mine"
    with KfpStub().listening() as stub:
        done = invoke("--namespace", "ann")
        assert done.exit_code == 0
        assert "the namespace ann is not used" in done.output
        assert only(stub.experiments).namespace is None


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed, and its key."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kfp.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, secret.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return folder / "certificate.pem", folder / "key.pem"


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path)
    with KfpStub(token="right").listening((str(certificate), str(key))) as stub:
        done = at(stub.address)
        assert done.exit_code == 3
        assert "is not trusted (self-signed certificate" in done.output
        assert "KFP_SSL_CA_CERT" in done.output
        monkeypatch.setenv("KFP_EXISTING_TOKEN", "right")
        monkeypatch.setenv("KFP_SSL_CA_CERT", str(certificate))
        assert Service(stub.address).address == stub.address
        monkeypatch.setenv("KFP_SSL_CA_CERT", str(tmp_path / "nothing"))
        assert "KFP_SSL_CA_CERT" in at(stub.address).output
        monkeypatch.delenv("KFP_SSL_CA_CERT")
        monkeypatch.setenv("KFP_VERIFY_SSL", "false")
        assert Service(stub.address).address == stub.address
    monkeypatch.delenv("KFP_VERIFY_SSL")
    with KfpStub().listening() as stub:
        done = at(stub.address.replace("http:", "https:"))
        assert (done.exit_code, "does not speak TLS. Write the address with http://" in done.output) == (3, True), done.output


def test_a_proxy(stub: KfpStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_PROXY", f"http://user:{CANARY}@127.0.0.1:{free_port()}")
    done = at(stub.address)
    assert done.exit_code == 3
    assert CANARY not in done.output
    assert "the proxy that KFP_PROXY names cannot be reached" in done.output
    assert stub.requests == []


# --- KFP's own command line, and the stub itself


def test_kfps_own_command_line(stub: KfpStub, rco_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kfp.cli import cli

    def kfp(*words: str) -> str:
        done = CliRunner().invoke(cli.cli, ["--endpoint", stub.address, *words], obj={}, auto_envvar_prefix="KFP")
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    program = Path(sys.executable).parent / "kfp"
    command = [str(program), "--endpoint", stub.address, "pipeline", "upload", str(rco_yaml)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pipeline = only(stub.pipelines)
    assert pipeline.display_name == "route-constrained-optimization"
    assert f"{stub.address}/#/pipelines/details/{pipeline.pipeline_id}" in done.stdout

    kfp("pipeline", "create", "-p", "another", str(rco_yaml))
    kfp("pipeline", "create-version", "-n", "another", "-v", "second", str(rco_yaml))
    version = next(v for v in stub.versions.values() if v.display_name == "second")
    assert set(version.pipeline_spec) == {"pipeline_spec", "platform_spec"}, "both documents have arrived"
    words = ["-e", "of kfp", "-p", version.pipeline_id, "-v", version.pipeline_version_id, "tau=3.5", "milestones=[0.5]"]
    kfp("run", "create", "-r", "by version", *words)
    kfp("run", "create", "-r", "by package", "-e", "of kfp", "-f", str(rco_yaml), "download=false")
    sent = {run.display_name: run for run in stub.runs.values()}
    assert sent["by version"].runtime_config.parameters == {"tau": 3.5, "milestones": [0.5]}
    assert set(sent["by package"].pipeline_spec) == {"pipeline_spec", "platform_spec"}
    # What our command points to: the same run, looked at with theirs.
    assert "by version" in kfp("run", "get", sent["by version"].run_id)
    # And ours finds the pipeline that theirs has made.
    upload(Service(stub.address), Package.read(rco_yaml))
    assert len(stub.pipelines) == 2


def test_the_stub_refuses_what_kfp_refuses(stub: KfpStub, rco_yaml: Path, tmp_path: Path) -> None:
    service = Service(stub.address)
    good = rco_yaml.read_text()
    bad = {
        "not yaml": "a: [\n",
        "no pipeline": "a: 1\n",
        "two pipelines": f"{good.split('---')[0]}---\n{good}",
        "an unknown field": good.replace("schemaVersion: 2.1.0", "schemaVersion: 2.1.0\nnothing: 1"),
        "another schema": good.replace("schemaVersion: 2.1.0", "schemaVersion: 2.0.0"),
        "a platform that is none": good.replace("fieldPathAsEnv", "fieldPathAsNothing"),
    }
    pipeline = service.ask(
        service.client.pipelines.pipeline_service_create_pipeline,
        pipeline=service.client.api_models.V2beta1Pipeline(display_name="x"),
    )
    for what, content in bad.items():
        assert content != good
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(ServiceError) as caught:
            service.call(
                service.client.pipeline_uploads.upload_pipeline_version,
                uploadfile=str(tmp_path / "bad.yaml"),
                name=what,
                pipelineid=pipeline.pipeline_id,
            )
        assert caught.value.status == 400, what
    package = Package.read(rco_yaml)
    there = upload(service, package)
    for parameters in ({"tau": "3"}, {"milestones": 1}, {"download": 0}, {"epochs": True}, {"nothing": 1}):
        with pytest.raises(ServiceError) as caught:
            start(service, package, there, Request(name="n", experiment="e", parameters=parameters))
        assert caught.value.status == 400, parameters
        with pytest.raises(InputError):
            package.check(parameters)
    assert stub.runs == {}
