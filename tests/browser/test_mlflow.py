"""MLflow as a person sees it, in a real browser against a real server."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.truth import Comparison
from tests.browser.ui import Mlflow


def test_every_branch_has_every_seed_and_whole_curves(held: Comparison) -> None:
    seeds = {run["seed"] for run in held.runs.values()}
    assert len(held.branches) > 1
    assert len(held.runs) == len(held.branches) * len(seeds)
    for curve in held.curves.values():
        assert [step for step, _ in curve] == list(range(1, len(curve) + 1))


def test_tags_filter_by_branch_seed_data_and_pipeline_run(mlflow_ui: Mlflow, held: Comparison) -> None:
    mlflow_ui.open_experiment(held.experiment)
    this = f"tags.\"rco.pipeline_run\" = '{held.pipeline_run}' AND "
    name, run = next(iter(held.runs.items()))
    branch = held.branches[run["branch"]]
    seed = [n for n, r in held.runs.items() if r["seed"] == run["seed"]]
    mlflow_ui.search(held.students, matching=len(held.runs) + 1)
    mlflow_ui.unfold(held.parent)
    mlflow_ui.expect_runs([held.parent, *held.runs])
    for condition, names in (
        (f"tags.\"rco.branch\" = '{run['branch']}'", branch),
        (f"tags.\"rco.seed\" = '{run['seed']}' AND tags.\"rco.branch\" LIKE '%'", seed),
        (f"tags.\"rco.branch\" = '{run['branch']}' AND tags.\"rco.seed\" = '{run['seed']}'", [name]),
        (f"tags.\"rco.data\" = '{held.data}' AND tags.\"rco.branch\" LIKE '%'", list(held.runs)),
    ):
        mlflow_ui.search(this + condition, matching=len(names) + 1)
        mlflow_ui.expect_runs([held.parent, *names])
    mlflow_ui.search(this + "tags.\"rco.branch\" = 'no such branch'", matching=0)


def test_branches_overlay_on_one_step_axis(mlflow_ui: Mlflow, held: Comparison) -> None:
    mlflow_ui.open_experiment(held.experiment)
    mlflow_ui.search(held.students, matching=len(held.runs) + 1)
    mlflow_ui.unfold(held.parent)
    mlflow_ui.compare(list(held.runs))
    mlflow_ui.open_metric("val_accuracy")
    lines = mlflow_ui.lines(count=len(held.runs))
    assert lines == held.curves
    assert mlflow_ui.painted() == set(held.runs)


def test_the_table_shows_what_one_compares_by(mlflow_ui: Mlflow, held: Comparison) -> None:
    mlflow_ui.open_experiment(held.experiment)
    mlflow_ui.search(held.students, matching=len(held.runs) + 1)
    mlflow_ui.unfold(held.parent)
    mlflow_ui.choose_columns(show=["test_accuracy", "congruence_kl"], hide=["Dataset", "Source", "Models"])
    for name, run in held.runs.items():
        shown = mlflow_ui.cells(name)
        for metric in ("test_accuracy", "congruence_kl"):
            assert float(shown[f"metrics.{metric}"]) == pytest.approx(run["metrics"][metric], rel=1e-3)


def test_anchors_are_models_with_epoch_accuracy_and_hardness(mlflow_ui: Mlflow, held: Comparison) -> None:
    mlflow_ui.open_experiment(held.experiment)
    mlflow_ui.open_models()
    mlflow_ui.choose_columns(hide=["Logged from", "Source run", "Registered models", "Dataset"])
    expect(mlflow_ui.page.get_by_role("columnheader", name="anchor_hardness", exact=True)).to_be_visible()
    for name, anchor in held.anchors.items():
        shown = mlflow_ui.cells(name)
        assert float(shown['metrics.{"metricKey":"anchor_val_accuracy"}']) == pytest.approx(anchor["val_accuracy"])
        assert float(shown['metrics.{"metricKey":"anchor_hardness"}']) in [pytest.approx(h) for h in anchor["hardness"]]
    name, anchor = min(held.anchors.items(), key=lambda item: item[1]["epoch"])
    mlflow_ui.open_link(name)
    expect(mlflow_ui.figure("epoch")).to_contain_text(str(anchor["epoch"]))
    expect(mlflow_ui.figure("anchor_val_accuracy")).to_contain_text(f"{anchor['val_accuracy']:.6f}"[:-1])
    expect(mlflow_ui.figure("anchor_hardness")).to_be_visible()


def test_the_parent_has_the_summary_and_the_report(mlflow_ui: Mlflow, held: Comparison) -> None:
    mlflow_ui.open_experiment(held.experiment)
    mlflow_ui.open_link(held.parent)
    for name in held.runs:
        expect(mlflow_ui.page.get_by_role("link", name=name, exact=True)).to_be_visible()
    report = mlflow_ui.open_artifact("report", "report.html")
    expect(report.get_by_role("heading", level=1)).to_be_visible()
    expect(report.get_by_role("table").first).to_be_visible()
    expect(report.get_by_role("img").first).to_be_visible()
