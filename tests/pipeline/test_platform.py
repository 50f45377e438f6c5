"""What the compiled pipelines ask of Kubernetes, read with KFP's own protos, by default and with every setting."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format
from kfp import dsl
from kfp.dsl import pipeline_context
from kfp.kubernetes import kubernetes_executor_config_pb2 as config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components import check, report
from components.component import POLICIES
from components.image import IMAGE, content_hash
from pipelines.cli.main import main
from pipelines.cluster.deployment import Deployment, TaskClass, read_deployment
from pipelines.cluster.placement import Cluster
from pipelines.cluster.quantities import seconds
from pipelines.compile import compile_to, image_to_run
from pipelines.pipeline import make_pipeline
from rco.config.shape import Shape
from rco.core.errors import InputError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "kubernetes" / "deployment.yaml"
REFERENCE = "registry.example.com/team/rco-python@sha256:" + "0" * 64


class Task(NamedTuple):
    """A task with all that the two documents say of it."""

    component: str
    given: TaskClass
    spec: pipeline_spec_pb2.PipelineTaskSpec
    container: pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec
    kubernetes: config_pb2.KubernetesExecutorConfig


class Compiled:
    """A pipeline's two documents, as KFP's protos."""

    def __init__(self, path: Path, site: Deployment) -> None:
        self.site, self.text = site, path.read_text()
        pipeline, platform = yaml.safe_load_all(self.text)
        self.spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        deployment = json_format.ParseDict(pipeline["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig())
        self.executors = deployment.executors
        parsed = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        self.kubernetes = {
            label: json_format.ParseDict(json_format.MessageToDict(config), config_pb2.KubernetesExecutorConfig())
            for label, config in parsed.platforms["kubernetes"].deployment_spec.executors.items()
        }
        self.tasks = list(self._tasks(self.spec.root.dag))

    def _tasks(self, dag: pipeline_spec_pb2.DagSpec) -> Iterator[Task]:
        for spec in dag.tasks.values():
            component = self.spec.components[spec.component_ref.name]
            if component.HasField("dag"):
                yield from self._tasks(component.dag)
                continue
            label = component.executor_label
            name = re.sub(r"(-\d+)*$", "", label.removeprefix("exec-"))  # KFP numbers those that it has several of
            given = self.site.of(CLASS_OF[name])
            yield Task(name, given, spec, self.executors[label].container, self.kubernetes[label])


SHAPE = Shape(kinds=("kd", "greedy"), grid={}, steps={"kd": 1, "greedy": 2})
for shape in (SHAPE, Shape.of_run(1)):  # some components are made for a shape
    make_pipeline(shape)
CLASS_OF = {name: policy.task_class for name, policy in POLICIES.items()}
#: What looks at what a source of data or the tracking server holds now.
UNCACHED = {"check", "register-student", "report", "close-run"}
COMPILE: dict[str, Callable[[Path, Cluster], Path]] = {
    "rco": lambda path, cluster: compile_to(path, Shape.of_run(2), cluster),
    "comparison": lambda path, cluster: compile_to(path, SHAPE, cluster),
}
CASES = [(pipeline, file) for pipeline in COMPILE for file in (None, EXAMPLE)]


@pytest.fixture(scope="module", params=CASES, ids=[f"{p}-{'full' if f else 'default'}" for p, f in CASES])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    pipeline, file = request.param
    site = read_deployment(file)
    path = tmp_path_factory.mktemp("yaml") / "pipeline.yaml"
    return Compiled(COMPILE[pipeline](path, Cluster(deployment=site, image=REFERENCE)), site)


def test_every_component_has_a_class() -> None:
    files = {path.stem.replace("_", "-") for path in (ROOT / "components").glob("*.py")}
    assert set(CLASS_OF) == files - {"--init--", "--main--", "image", "component", "generated"}
    assert {name for name, policy in POLICIES.items() if not policy.cached} == UNCACHED


def test_what_computes_on_the_device_is_one_class() -> None:
    from rco.tasks.process import TASKS, register_all
    from rco.tasks.stage import distill_stage

    register_all()
    found = {
        name.replace("_", "-")
        for name, function in TASKS.items()
        if name.replace("_", "-") in CLASS_OF and "prepare_process(" in inspect.getsource(function)
    }
    called = {"distill-students": distill_stage}
    assert all("prepare_process(" in inspect.getsource(function) for function in called.values())
    assert found | set(called) == {name for name, kind in CLASS_OF.items() if kind == "train"}
    assert not found & set(called)


def test_every_executor_is_placed(compiled: Compiled) -> None:
    assert set(compiled.kubernetes) == set(compiled.executors)


def test_image(compiled: Compiled) -> None:
    assert {t.container.image for t in compiled.tasks} == {REFERENCE}
    assert {t.kubernetes.image_pull_policy for t in compiled.tasks} == {"IfNotPresent"}
    for t in compiled.tasks:
        assert tuple(s.secret_name for s in t.kubernetes.image_pull_secret) == compiled.site.image_pull_secrets


def test_cache_policy_is_said_of_every_task(compiled: Compiled) -> None:
    for t in compiled.tasks:
        assert t.spec.HasField("caching_options")
        assert t.spec.caching_options.enable_cache is (t.component not in UNCACHED)


def test_the_cache_policy_does_not_depend_on_who_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KFP_DISABLE_EXECUTION_CACHING_BY_DEFAULT is read once, into this; what is said of a task is no default."""
    monkeypatch.setattr(pipeline_context.Pipeline, "_execution_caching_default", False)
    for t in Compiled(compile_to(tmp_path / "rco.yaml", Shape.of_run(1)), Deployment()).tasks:
        assert t.spec.caching_options.enable_cache is (t.component not in UNCACHED)


def test_resources(compiled: Compiled) -> None:
    for t in compiled.tasks:
        has = t.container.resources
        assert (has.resource_cpu_request, has.resource_cpu_limit) == (t.given.cpu_request, t.given.cpu_limit)
        assert (has.resource_memory_request, has.resource_memory_limit) == (t.given.memory_request, t.given.memory_limit)
        gpu = ("nvidia.com/gpu", "1") if CLASS_OF[t.component] == "train" and t.given.gpus else ("", "")
        assert (has.accelerator.resource_type, has.accelerator.resource_count) == gpu
        shared = [(m.mount_path, m.medium, m.size_limit) for m in t.kubernetes.empty_dir_mounts]
        assert shared == ([("/dev/shm", "Memory", t.given.shm)] if t.given.shm else [])


def test_only_the_example_waits_for_gpus(compiled: Compiled) -> None:
    with_gpus = {t.component for t in compiled.tasks if t.container.resources.HasField("accelerator")}
    trains = {t.component for t in compiled.tasks if CLASS_OF[t.component] == "train"}
    assert with_gpus == (trains if compiled.site.train.gpus else set())


def test_device_and_threads_are_those_of_the_pods_that_compute(compiled: Compiled) -> None:
    inputs = compiled.spec.root.input_definitions.parameters
    assert inputs["device"].default_value.string_value == ("cuda" if compiled.site.train.gpus else "cpu")
    assert inputs["threads"].default_value.number_value == (8 if compiled.site.train.gpus else 2)


def test_retries_and_timeouts(compiled: Compiled) -> None:
    for t in compiled.tasks:
        assert t.kubernetes.active_deadline_seconds == seconds("timeout", t.given.timeout)
        policy = t.spec.retry_policy
        assert policy.max_retry_count == t.given.retries
        if t.component == "check":
            assert not t.spec.HasField("retry_policy")
            continue
        assert policy.backoff_duration.seconds == seconds("backoff", t.given.backoff)
        assert policy.backoff_factor == int(policy.backoff_factor) == 2  # the engine takes whole numbers only
        # All tries with all waits have room before the engine gives up.
        waits = sum(policy.backoff_duration.seconds * 2**k for k in range(t.given.retries))
        tries = (t.given.retries + 1) * t.kubernetes.active_deadline_seconds
        assert policy.backoff_max_duration.seconds > 10 * (tries + waits)


def test_nodes(compiled: Compiled) -> None:
    for t in compiled.tasks:
        assert dict(t.kubernetes.node_selector.labels) == t.given.node_selector
        borne = [(x.key, x.operator, x.value, x.effect, x.toleration_seconds) for x in t.kubernetes.tolerations]
        own = [(x.key, x.operator, x.value, x.effect, x.toleration_seconds or 0) for x in t.given.tolerations]
        gpu = [("nvidia.com/gpu", "Exists", "", "NoSchedule", 0)] if t.given.gpus else []
        assert borne == gpu + own


def test_labels_and_annotations(compiled: Compiled) -> None:
    for t in compiled.tasks:
        assert dict(t.kubernetes.pod_metadata.labels) == compiled.site.labels
        assert dict(t.kubernetes.pod_metadata.annotations) == compiled.site.annotations


def test_services_are_known_by_reference(compiled: Compiled) -> None:
    site = compiled.site
    full = bool(site.volumes)
    expected = {
        ("config-map", "rco-settings", "/etc/rco/environment/config-map/rco-settings", not full),
        ("secret", "rco-credentials", "/etc/rco/environment/secret/rco-credentials", True),
    }
    for t in compiled.tasks:
        maps = {("config-map", m.config_map_name, m.mount_path, m.optional) for m in t.kubernetes.config_map_as_volume}
        secrets = {("secret", m.secret_name, m.mount_path, m.optional) for m in t.kubernetes.secret_as_volume}
        assert {mount for mount in maps | secrets if mount[1] != "company-ca"} == expected
        # A variable by reference clashes with one of the same name that KFP's MLflow plugin sets.
        assert not t.kubernetes.config_map_as_env
        assert not t.kubernetes.secret_as_env
        (run,) = t.kubernetes.field_path_as_env
        assert (run.name, run.field_path) == ("RCO_PIPELINE_RUN", "metadata.labels['pipeline/runid']")


def test_volumes_resume_points_and_certificates(compiled: Compiled) -> None:
    site = compiled.site
    for t in compiled.tasks:
        variables = {e.name: e.value for e in t.container.env}
        wanted = {"RCO_PROCESS_RESTARTS": "3"} if CLASS_OF[t.component] == "train" else {}
        mounts = [(m.constant, m.mount_path, m.sub_path) for m in t.kubernetes.pvc_mount]
        if (CLASS_OF[t.component] == "light" and t.component != "close-run") or not site.volumes:
            assert mounts == []
        else:
            assert mounts == [("rco-work", "/work", "rco")]
            wanted["RCO_RESUME"] = "/work/resume"
            if t.component != "close-run":
                wanted["RCO_RESULTS"] = "/work/resume/results"
        maps = [(m.config_map_name, m.mount_path, m.optional) for m in t.kubernetes.config_map_as_volume]
        certificates = [mount for mount in maps if mount[0] == "company-ca"]
        assert certificates == ([("company-ca", "/etc/rco/certificates", False)] if site.certificates.config_map else [])
        if certificates:
            wanted |= dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), "/etc/rco/certificates/ca.crt")
        if site.volumes:
            wanted["RCO_ENVIRONMENT"] = (
                "config-map/rco-settings!:MLFLOW_TRACKING_URI,AWS_ENDPOINT_URL_S3,AWS_REGION "
                "secret/rco-credentials:AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY"
            )
        assert variables == wanted


def placed(folder: Path, text: str) -> list[Task]:
    """The tasks of a run, compiled with a deployment file."""
    file = folder / "site.yaml"
    file.write_text(text)
    site = read_deployment(file)
    return Compiled(compile_to(folder / "rco.yaml", Shape.of_run(1), Cluster(deployment=site)), site).tasks


def test_one_key_may_serve_two_variables(tmp_path: Path) -> None:
    for t in placed(tmp_path, "environment: [{secret: s, variables: {A: token, B: token}}]\n"):
        assert [v.value for v in t.container.env if v.name == "RCO_ENVIRONMENT"] == ["secret/s:A=token,B=token"]


@pytest.mark.parametrize(
    ("text", "mounted", "by_reference"),
    [
        # KFP calls a volume as what it is of, and a pod has no two of one name, nor one with a dot in it.
        ("environment: [{config_map: x, variables: [A]}, {secret: x, variables: {B: b, C: b}}]", {"x"}, {"B", "C"}),
        ("environment: [{secret: with.dot, variables: [A]}]", set(), {"A"}),
        # KFP's MLflow plugin sets this one by value; Kubernetes refuses a pod that has both under one name.
        ("environment: [{secret: with.dot, variables: [MLFLOW_TRACKING_URI]}]", set(), {"RCO_MLFLOW_TRACKING_URI"}),
        ("environment: [{secret: w, variables: [A]}]\nvolumes: [{claim: w, path: /w}]", set(), {"A"}),
        ("environment: [{secret: ca, variables: [A]}]\ncertificates: {config_map: ca}", {"ca"}, {"A"}),
        # One object is one volume.
        ("environment: [{secret: s, variables: [A], optional: false}, {secret: s, variables: [B]}]", {"s"}, set()),
    ],
)
def test_what_cannot_be_mounted_is_known_by_variables(
    tmp_path: Path, text: str, mounted: set[str], by_reference: set[str]
) -> None:
    for t in placed(tmp_path, text):
        k = t.kubernetes
        names = [m.secret_name for m in k.secret_as_volume] + [m.config_map_name for m in k.config_map_as_volume]
        assert (set(names), len(names)) == (mounted, len(mounted))
        pairs = [pair for source in (*k.secret_as_env, *k.config_map_as_env) for pair in source.key_to_env]
        assert {pair.env_var for pair in pairs} == by_reference


def test_certificates_may_lie_among_the_settings(tmp_path: Path) -> None:
    text = "environment: [{config_map: ours, variables: [A]}]\ncertificates: {config_map: ours}\n"
    for t in placed(tmp_path, text):
        (mount,) = t.kubernetes.config_map_as_volume
        variables = {e.name: e.value for e in t.container.env}
        assert variables["AWS_CA_BUNDLE"] == f"{mount.mount_path}/ca.crt" == "/etc/rco/environment/config-map/ours/ca.crt"


def test_code_that_the_image_has_is_not_written_into_the_pipeline(compiled: Compiled) -> None:
    for t in compiled.tasks:
        assert list(t.container.command) == ["python3", "-m", "components", t.component.replace("-", "_")]
        assert list(t.container.args) == ["--executor_input", "{{$}}"]


@pytest.mark.parametrize("shape", [SHAPE, Shape.of_run(2)], ids=["comparison", "run"])
@pytest.mark.parametrize("module", [check, report], ids=["check", "report"])
def test_in_the_image_a_made_component_has_the_interface_that_was_compiled(module: ModuleType, shape: Shape) -> None:
    compiled = getattr(module, module.__name__.rpartition(".")[2])(shape).component_spec
    values = {field.name: field.default for field in shape.form} | shape.constants
    parameters = {name: values.get(name, {}) for name, p in compiled.inputs.items() if "." not in p.type}
    artifacts = {name: None for name, p in compiled.inputs.items() if "." in p.type}
    given = {"inputs": {"parameterValues": parameters, "artifacts": artifacts}, "outputs": {"parameters": compiled.outputs}}
    made = dsl.component(module.in_image(given)).component_spec
    assert {name: p.type for name, p in made.inputs.items()} == {name: p.type for name, p in compiled.inputs.items()}
    assert made.outputs == compiled.outputs


def test_no_secret_of_whoever_compiles_is_in_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-5b1f0a"
    site = read_deployment(EXAMPLE)
    names = {variable for source in (*site.environment, *Deployment().environment) for variable in source.variables}
    for name in names | {"AWS_PROFILE", "RCO_RESUME", "RCO_RESULTS", "RCO_PIPELINE_RUN", "MLFLOW_RUN_ID"}:
        monkeypatch.setenv(name, f"{canary}-{name}")
    for make in COMPILE.values():
        assert canary not in make(tmp_path / "pipeline.yaml", Cluster(deployment=site)).read_text()


def test_on_this_machine_nothing_is_asked_of_kubernetes() -> None:
    for make in (make_pipeline(Shape.of_run(1)), make_pipeline(SHAPE)):
        assert not make.platform_spec.platforms
        executors = json_format.MessageToDict(make.pipeline_spec.deployment_spec)["executors"]
        for executor in executors.values():
            assert set(executor["container"]) == {"image", "command", "args"}
            assert executor["container"]["image"] == IMAGE
        assert make.pipeline_spec.root.input_definitions.parameters["device"].default_value.string_value == "auto"


class TestImage:
    """Which image a compiled pipeline names. The root is one of its own: the checkout may hold a build."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "rco").mkdir()
        (tmp_path / "rco" / "code.py").write_text("1\n")
        return tmp_path

    def build(self, root: Path, **about: Any) -> None:
        (root / "build").mkdir(exist_ok=True)
        fresh = {"name": "rco-python", "tag": "abc", "content": content_hash(root), "reference": REFERENCE}
        (root / "build" / "image.json").write_text(json.dumps({**fresh, **about}))

    def test_what_was_pushed_by_digest(self, root: Path) -> None:
        self.build(root)
        warnings: list[str] = []
        assert image_to_run(root, warnings.append) == REFERENCE
        assert warnings == []

    def test_what_was_built_but_not_pushed(self, root: Path) -> None:
        self.build(root, reference="rco-python:abc")
        warnings: list[str] = []
        assert image_to_run(root, warnings.append) == "rco-python:abc"
        (warning,) = warnings
        assert "has not been pushed" in warning

    def test_without_a_build_the_local_name_and_a_warning(self, root: Path) -> None:
        warnings: list[str] = []
        assert image_to_run(root, warnings.append) == IMAGE
        (warning,) = warnings
        assert "make build-images" in warning
        assert "RCO_IMAGE" in warning

    def test_a_stale_build_is_refused(self, root: Path) -> None:
        self.build(root)
        (root / "rco" / "code.py").write_text("2\n")
        with pytest.raises(
            InputError, match=r"was built from other code or dependencies than are here now\. Run make build-images"
        ):
            image_to_run(root)

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", "null", '{"reference": 1, "content": "HASH"}', '{"reference": "", "content": "HASH"}']
    )
    def test_a_file_that_says_nothing_is_refused(self, root: Path, content: str) -> None:
        (root / "build").mkdir()
        (root / "build" / "image.json").write_text(content.replace("HASH", content_hash(root)))
        with pytest.raises(InputError, match="image"):
            image_to_run(root)

    def test_rco_image_wins(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.build(root, content="stale")
        monkeypatch.setenv("RCO_IMAGE", "registry.example.com/mine:1")
        assert image_to_run(root) == "registry.example.com/mine:1"
        monkeypatch.setenv("RCO_IMAGE", "https://registry.example.com/mine")
        with pytest.raises(InputError, match="RCO_IMAGE"):
            image_to_run(root)


def test_rco_compile_takes_the_file_and_says_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCO_IMAGE", REFERENCE)
    outputs = [tmp_path / "rco.yaml", tmp_path / "comparison.yaml"]
    arguments = [
        "compile",
        "--max-stages",
        "1",
        "--branches",
        "kd,scratch",
        "--output",
        str(outputs[0]),
        "--comparison",
        str(outputs[1]),
    ]
    done = CliRunner().invoke(main, [*arguments, "--deployment", str(EXAMPLE)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [f"image: {REFERENCE}", *map(str, outputs)]
    for path in outputs:
        made = Compiled(path, read_deployment(EXAMPLE))
        assert {t.container.image for t in made.tasks} == {REFERENCE}
        assert any(t.container.resources.HasField("accelerator") for t in made.tasks)


def test_a_bad_file_is_one_line_and_refused_before_kfp_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("train: {memory_limit: 4 gigs}\n")
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli.main import main;"
        f"done = CliRunner().invoke(main, ['compile', '--deployment', {str(file)!r}]);"
        "print(done.exit_code, 'kfp' in sys.modules, done.output)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True, cwd=ROOT).stdout
    assert done.startswith("2 False rco: train.memory_limit = '4 gigs': is not an amount of memory.")
    assert len(done.strip().splitlines()) == 1
