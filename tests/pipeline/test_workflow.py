"""The count of a workflow's bytes, held to the workflows that a real cluster had."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from kfp import dsl

from pipelines.cluster.workflow import LARGEST, workflow_of
from pipelines.compile import compile_to
from rco.config.shape import Shape

RECORDED = Path(__file__).parents[1] / "recorded"


def of(name: str, folder: Path) -> Path:
    path = folder / "pipeline.yaml"
    path.write_bytes(gzip.decompress((RECORDED / f"{name}-81e6d13.yaml.gz").read_bytes()))
    return path


def test_the_comparison_that_a_cluster_ran(tmp_path: Path) -> None:
    found = workflow_of(of("comparison", tmp_path))
    assert (found.pods, found.nodes) == (78, 246)
    assert found.spec == pytest.approx(260_368, rel=0.01)
    assert found.status == pytest.approx(2_939_290, rel=0.02)


def test_the_run_that_a_cluster_ran(tmp_path: Path) -> None:
    found = workflow_of(of("run", tmp_path))
    assert found.pods == 38  # 37, where the fourth stage had nothing to do
    assert found.spec == pytest.approx(168_762, rel=0.02)  # compiled with a deployment file then
    # After 103 of its nodes it had 1.06 MB: it passes the limit before it ends, as it did.
    assert 1_060_968 < found.status < 1_060_968 * found.nodes / 103 * 1.2
    assert found.total > LARGEST


def test_without_kfps_defaults_there_is_one_node_where_there_were_two(tmp_path: Path) -> None:
    path = compile_to(tmp_path / "rco.yaml", Shape.of_run(1))
    stock, plain = workflow_of(path), workflow_of(path, doubled=False)
    assert (stock.pods, stock.spec) == (plain.pods, plain.spec)
    # Tasks that have retries of their own keep a retry node for their pods.
    with_retries = 9
    assert plain.nodes == stock.nodes // 2 + with_retries
    assert plain.status < 0.7 * stock.status


def test_a_larger_pipeline_has_a_larger_workflow(tmp_path: Path) -> None:
    sizes = [workflow_of(compile_to(tmp_path / "rco.yaml", Shape.of_run(stages))) for stages in (1, 2)]
    assert sizes[1].pods - sizes[0].pods == 5  # the stage, and two tasks with their drivers
    assert sizes[0].total < sizes[1].total


@pytest.mark.parametrize(("classes", "written"), [(100, True), (101, False), (1000, False)])
def test_a_confusion_matrix_that_nobody_can_read_stays_out_of_kubeflow(classes: int, written: bool, tmp_path: Path) -> None:
    from rco.tasks.evaluate import CONFUSION, write_confusion

    ones = [[1] * classes] * classes
    write_confusion(tmp_path, [str(k) for k in range(classes)], [ones, ones])
    assert (tmp_path / CONFUSION).is_file() == written
    if written:
        assert json.loads((tmp_path / CONFUSION).read_text())["matrix"][3][5] == 2


def test_the_largest_confusion_matrix_is_far_below_what_kfp_takes() -> None:
    """Its backend refuses tasks with more than 4 MiB of metrics: those of some 600 classes (kubeflow/pipelines#11949)."""
    from rco.tasks.evaluate import _READABLE

    def size(classes: int) -> int:
        metrics = dsl.ClassificationMetrics(name="confusion", uri="", metadata={})
        names = [f"a class with quite a long name {number:04d}" for number in range(classes)]
        metrics.log_confusion_matrix(names, [[1_000_000] * classes] * classes)
        return len(json.dumps(metrics.metadata))

    assert size(_READABLE) < 2**22 / 10
    assert size(1000) > 2**22
