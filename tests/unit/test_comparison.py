"""Branches and statistics of a comparison: what is compared with what, and what may be said of it."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rco.config.branches import Comparison, branch_params, make_branches
from rco.config.kinds import KINDS, MOST, STANDARD, read_seeds
from rco.config.parameters import RunConfig
from rco.config.shape import labels
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.evaluation.statistics import Result, by_branch, compare, holm, mean_and_deviation, paired, require_same_data, verdict
from rco.objectives.config import ObjectiveConfig
from rco.objectives.dkd import Dkd
from rco.objectives.hint import Hint
from rco.reporting.page import as_csv
from rco.reporting.side_by_side import _open_set_table, metric_name
from rco.strategies.equal_interval import EqualInterval
from rco.strategies.lr_decay import LrDecay
from rco.tasks.preflight import preflight
from rco.tasks.validate import shape_of


def names(*args: Any, **kwargs: Any) -> list[str]:
    return [branch.name for branch in make_branches(*args, **kwargs)]


def results(**accuracies: list[float]) -> list[Result]:
    return [
        Result(
            branch=branch.replace("_", "-"),
            seed=seed,
            test_accuracy=accuracy,
            val_accuracy=accuracy,
            congruence_kl=0.1,
            student_epochs=8,
            teacher_forward_passes=800,
            train_seconds=2.0,
        )
        for branch, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


class TestBranches:
    def test_the_standard_six(self) -> None:
        branches = {b.name: b for b in make_branches({"epochs": 40})}
        assert list(branches) == list(STANDARD)
        assert {b.reference for n, b in branches.items() if n != "kd"} == {"kd"}
        assert branches["kd"].reference == ""
        assert {b.config.student_train.epochs for b in branches.values()} == {40}, "equal cost in student epochs"
        assert branches["scratch"].config.objective.lambda_ == 0
        assert branches["kd"].config.anchors.strategy == EqualInterval(n_anchors=1)
        like = branches["kd-restart"].like
        assert like is not None
        assert like.anchors.strategy == EqualInterval(n_anchors=4)
        assert [n for n, b in branches.items() if b.follows_route] == ["equal-interval", "lr-decay", "greedy"]

    def test_what_does_not_matter_to_a_branch_is_not_in_its_settings(self) -> None:
        base, other = ({b.name: b.config for b in make_branches(p)} for p in ({}, {"delta": 3.0, "n_anchors": 5}))
        changed = {name for name in base if base[name] != other[name]}
        assert changed == {"equal-interval", "greedy"}

    def test_a_sweep_compares_like_with_like(self) -> None:
        grid = {"student": ["digits-cnn-s", "digits-mlp"], "tau": [2, 4]}
        branches = {b.name: b for b in make_branches({}, ("kd", "greedy"), grid=grid)}
        assert set(branches) == {
            f"{kind}{cell}"
            for kind in ("kd", "greedy")
            for cell in ("", " tau=2", " student=digits-mlp", " student=digits-mlp tau=2")
        }
        for branch in branches.values():
            if branch.reference:
                theirs = branches[branch.reference].config
                assert (theirs.student, theirs.objective) == (branch.config.student, branch.config.objective)

    def test_values_of_the_base_share_names_and_settings_with_a_plain_comparison(self) -> None:
        plain = {b.name: b.config for b in make_branches({})}
        swept = {b.name: b.config for b in make_branches({}, ("kd", "greedy", "equal-interval"), grid={"tau": [2, 4, 8]})}
        for name in ("kd", "greedy", "equal-interval"):
            assert swept[name] == plain[name]

    def test_axes_multiply_only_the_branches_that_they_matter_to(self) -> None:
        grid = {"delta": [1.2, 1.5, 2.0]}
        assert names({}, ("kd", "scratch", "equal-interval", "greedy"), grid=grid) == [
            "scratch",
            "kd",
            "equal-interval",
            "greedy delta=1.2",
            "greedy",
            "greedy delta=2",
        ]
        assert names({}, ("kd", "scratch"), grid={"tau": [2, 4], "lam": ["1", "tau^2"]}).count("scratch") == 1

    def test_scratch_is_compared_with_the_plainest_kd(self) -> None:
        branches = {b.name: b for b in make_branches({}, ("kd", "scratch"), grid={"tau": [2, 4]})}
        assert branches["scratch"].reference == "kd"

    def test_objectives_are_an_axis_and_each_has_its_own_parameters(self) -> None:
        parameters = {"student_tap": "stage1", "teacher_tap": "stage1", "dkd_beta": 4.0, "tau": 3.0, "label_weight": 0.5}
        grid = {"objective": ["route", "hint", "dkd"]}
        branches = {b.name: b for b in make_branches(parameters, ("scratch", "kd", "greedy"), grid=grid)}
        assert list(branches) == [
            *("scratch", "kd", "greedy"),
            *(f"{kind} objective={objective}" for objective in ("hint", "dkd") for kind in ("kd", "greedy")),
        ]
        of = {name: branch.config.objective for name, branch in branches.items()}
        assert of["greedy"] == ObjectiveConfig(tau=3.0, label_weight=0.5)
        assert of["scratch"] == ObjectiveConfig(tau=3.0, lam="0", label_weight=0.5), "the labels' weight reaches it too"
        assert of["kd objective=hint"].objective == Hint(student_tap="stage1", teacher_tap="stage1")
        assert of["kd objective=dkd"].objective == Dkd(dkd_beta=4.0)
        assert branches["greedy objective=hint"].reference == "kd objective=hint"
        assert branches["scratch"].reference == "kd"

    def test_an_axis_of_one_objective_multiplies_that_one_alone(self) -> None:
        grid = {"objective": ["route", "dkd"], "dkd_beta": [2, 8]}
        assert names({}, ("kd", "greedy"), grid=grid) == [
            *("kd", "greedy"),
            *("kd objective=dkd dkd_beta=2", "greedy objective=dkd dkd_beta=2"),
            *("kd objective=dkd", "greedy objective=dkd"),
        ]

    def test_where_no_anchor_is_asked_its_views_multiply_nothing(self) -> None:
        branches = make_branches({}, ["kd", "scratch"], grid={"lam": ["0", "16"], "views": [2, 4]})
        assert [branch.name for branch in branches] == ["scratch", "kd lam=0", "kd lam=16 views=2", "kd lam=16 views=4"]

    def test_restarts_follow_the_branch_that_is_named(self) -> None:
        branches = {b.name: b for b in make_branches({"n_anchors": 3}, restart_like="lr-decay")}
        like = branches["kd-restart"].like
        assert like is not None
        assert like.anchors.strategy == LrDecay()

    def test_parameters_there_and_back(self) -> None:
        made = Comparison.of({"branches": "kd,greedy", "seeds": "4,1", "tau": "2", "grid": {"delta": ["1.2", 2]}})
        assert made.seeds == (1, 4)
        assert Comparison.of(jsonable(made.to_parameters())) == made

    def test_what_people_compare_by(self) -> None:
        settings = preflight(Comparison.of({"tau": 3.0, "epochs": 44})).branches["greedy"].distill
        assert branch_params(settings.branch, settings.kind, settings.stage) == {
            "branch": "greedy",
            "strategy": "greedy",
            "student": "digits-cnn-s",
            "epochs": 44,
            "objective": "route",
            "tau": 3.0,
            "lambda": 9.0,
        }

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"branches": "kd,grady"}, "branches = 'grady': is not known. Did you mean 'greedy'?"),
            ({"branches": "kd,kd"}, "names a branch twice"),
            ({"branches": "greedy,scratch"}, "lacks kd"),
            ({"branches": "kd"}, "leaves nothing to compare"),
            ({"seeds": "0,1,0"}, "repeats a seed"),
            ({"seeds": ""}, "seeds = '': is empty"),
            ({"seeds": "a"}, "is not a list of whole numbers"),
            ({"seeds": [0.5]}, "has a value that is not a seed"),
            ({"seeds": "-1"}, "has a value that is not a seed"),
            ({"epochs": 0}, "epochs = 0"),
            ({"restart_like": "greedy"}, "known only when it has run"),
            ({"restart_like": "kd"}, "restart_like = 'kd': is not known"),
            (
                {"restart_like": "lr-decay", "branches": "kd,greedy"},
                "restart_like = 'lr-decay': means nothing with branches = kd, greedy. Leave it out, or add",
            ),
            ({"route": "r", "teacher_lr": 1}, "teacher_lr = 1.0: means nothing beside route"),
            (
                {"route": "r", "checkpoint_every": 2, "grid": {"tau": [1, 2]}},
                "checkpoint_every = 2: means nothing beside route",
            ),
            ({"branches": "kd,explicit"}, "in branch 'explicit'"),
            ({"grid": {"teacher": ["a", "b"]}}, "cannot be swept"),
            ({"grid": {"taus": [1, 2]}}, "Did you mean 'tau'"),
            ({"grid": {"tau": [2, 2.0]}}, "has a value twice"),
            ({"grid": {"tau": [0, 2]}}, "tau = 0"),
            ({"grid": {"tau": 3}}, "is not a list of values"),
            ({"grid": {"dkd_beta": [1, 2]}}, "dkd_beta = (1.0, 2.0): means nothing with objective = route"),
            ({"grid": {"objective": ["route", "dist"]}, "student_tap": "a"}, "means nothing with objective = route, dist"),
            ({"grid": {"objective": ["route", "hint"]}}, "in branch 'kd objective=hint'"),
            ({"grid": {"objective": ["route", "embedding"]}}, "lam = 'tau^2': in branch"),
            ({"grid": {"objective": ["route", "hnt"]}}, "Did you mean 'hint'"),
            ({"objective": "dist", "dkd_beta": 2}, "means nothing with objective = dist"),
            ({"grid": {"tau": list(range(1, 40))}}, f"more than the {MOST}"),
            ({"seed": 3}, "'seed': is not known"),
        ],
    )
    def test_refused_in_words(self, parameters: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError) as caught:
            Comparison.of(parameters)
        assert words in str(caught.value)


class TestPreflight:
    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            ({"epochs": 3}, "in branch 'kd-restart': is less than one epoch for each of 4 stages"),
            ({"n_anchors": 50, "branches": "kd,equal-interval"}, "in branch 'equal-interval': is more than the 11"),
            ({"teacher_schedule": "constant", "branches": "kd,lr-decay"}, "in branch 'lr-decay'"),
            ({"branches": "kd,explicit", "anchor_epochs": [5, 40]}, "in branch 'explicit': epoch 5 is not on the route"),
            ({"grid": {"student": ["digits-mlp", "vgg13"]}}, "in branch 'scratch student=vgg13'"),
            (
                {"grid": {"objective": ["route", "hint"]}, "student_tap": "stage1", "teacher_tap": "stage9"},
                "teacher_tap = 'stage9': in branch 'kd objective=hint'",
            ),
            ({"dataset": "digitz"}, "dataset = 'digitz'"),
            ({"route": "/nonexistent"}, "route = '/nonexistent'"),
        ],
    )
    def test_a_branch_that_cannot_work_is_named(self, parameters: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError) as caught:
            preflight(Comparison.of(parameters))
        assert words in str(caught.value)

    def test_the_teacher_is_that_of_a_single_run(self) -> None:
        single, several = preflight(Comparison.of_run(RunConfig())), preflight(Comparison.of({}))
        assert (single.data, single.teacher) == (several.data, several.teacher), "equal settings share the cache"

    def test_restarts_have_the_stage_lengths_of_the_branch_they_are_like(self) -> None:
        branches = preflight(Comparison.of({"epochs": 43})).branches
        assert branches["kd-restart"].anchors.lengths == (10, 10, 10, 13)
        assert {key for key, tasks in branches.items() if tasks.anchors.lengths} == {"kd-restart"}

    def test_congruence_is_measured_at_one_temperature(self) -> None:
        branches = preflight(Comparison.of({"grid": {"tau": [2, 8]}})).branches
        assert {tasks.evaluate.tau for tasks in branches.values()} == {4.0}
        assert {tasks.distill.stage.objective.tau for tasks in branches.values()} >= {2.0, 8.0}

    def test_steps(self) -> None:
        assert shape_of(Comparison.of({"n_anchors": 3})).steps == {**dict.fromkeys(STANDARD, 1), "greedy": 3}

    def test_another_branch_changes_no_settings_of_the_others(self) -> None:
        few, many = (preflight(Comparison.of({"branches": b})).branches for b in ("kd,greedy", list(STANDARD)))
        assert {name: many[name] for name in few} == few


class TestShape:
    def test_a_branch_is_known_by_all_its_values_whatever_the_shared_ones_are(self) -> None:
        grid = {"branches": ["kd", "scratch", "greedy"], "grid": {"tau": [2, 4]}}
        keys = ["scratch", "kd tau=2", "greedy tau=2", "kd tau=4", "greedy tau=4"]
        for shared in ({}, {"tau": 2.0}, {"tau": 3.0}):
            comparison = Comparison.of({**grid, **shared})
            assert sorted(branch.key for branch in comparison.branches) == sorted(keys)
        names = {branch.name for branch in Comparison.of(grid).branches}
        assert names == {"scratch", "kd", "greedy", "kd tau=2", "greedy tau=2"}

    def test_what_it_was_compiled_for_is_what_it_runs(self) -> None:
        compiled = shape_of(Comparison.of({"branches": ["kd", "greedy"]})).steps
        assert compiled == {"kd": 1, "greedy": 4}
        assert preflight(Comparison.of({"branches": ["kd", "greedy"], "n_anchors": 2}), compiled=compiled)

    @pytest.mark.parametrize(
        ("parameters", "words"),
        [
            (
                {"branches": ["kd", "lr-decay"]},
                "branches = 'lr-decay': is not one that the pipeline was compiled for: kd",
            ),
            ({"branches": ["kd", "greedy"], "n_anchors": 5}, "'greedy': needs 5 stages, and the pipeline was compiled with 4"),
            ({"branches": ["kd", "greedy"], "grid": {"tau": [2]}}, "branches = 'kd tau=2': is not one that the pipeline"),
            ({"branches": ["kd", "scratch"]}, "branches = 'scratch': is not one"),
        ],
    )
    def test_another_comparison_is_refused(self, parameters: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError) as caught:
            preflight(Comparison.of(parameters), compiled={"kd": 1, "greedy": 4})
        assert words in str(caught.value)

    def test_a_branch_too_many_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"branches = 'lr-decay': is one that the pipeline was compiled for, and these"):
            preflight(Comparison.of({"branches": ["kd", "greedy"]}), compiled={"kd": 1, "greedy": 4, "lr-decay": 1})

    @given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=12, unique=True))
    def test_labels_are_different_and_fit_into_names(self, keys: list[str]) -> None:
        made = labels(keys)
        assert list(made) == keys
        assert len(set(made.values())) == len(keys)
        assert labels(keys[::-1]) == made, "Kubeflow hands mappings over in any order"
        assert all(re.fullmatch(r"[a-z0-9_]*", label) and len(label) <= 50 for label in made.values())


values = st.floats(0, 1, allow_nan=False)
samples = st.integers(2, 8).flatmap(
    lambda n: st.tuples(st.lists(values, min_size=n, max_size=n), st.lists(values, min_size=n, max_size=n))
)


class TestStatistics:
    def test_a_paired_interval_by_hand(self) -> None:
        # Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653.
        pair = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        half = 4.302652729911275 / math.sqrt(3)
        assert pair.mean == pytest.approx(2.0)
        assert (pair.low, pair.high) == pytest.approx((2 - half, 2 + half))
        # t = 2 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2) in closed form.
        assert pair.p == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))

    @given(samples)
    def test_agrees_with_scipy(self, pair: tuple[list[float], list[float]]) -> None:
        a, b = pair
        ours = paired(a, b)
        if ours.p is None:
            assert np.ptp(np.subtract(a, b)) <= 1e-11
            return
        theirs = stats.ttest_rel(a, b)
        interval = theirs.confidence_interval(0.95)
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)

    @given(samples)
    def test_turned_round_it_says_the_opposite(self, pair: tuple[list[float], list[float]]) -> None:
        forth, back = paired(*pair), paired(*reversed(pair))
        assert forth.mean == pytest.approx(-back.mean)
        if forth.low is not None and back.high is not None:
            assert forth.low == pytest.approx(-back.high)
            assert forth.p == pytest.approx(back.p)

    def test_one_seed_has_no_interval(self) -> None:
        pair = paired([0.9], [0.8])
        assert (pair.low, pair.high, pair.p) == (None, None, None)
        assert mean_and_deviation([0.9]) == (0.9, None)

    def test_equal_differences_are_no_certainty(self) -> None:
        pair = paired([0.92, 0.93, 0.94], [0.91, 0.92, 0.93])
        assert pair.mean == pytest.approx(0.01)
        assert pair.p is None

    def test_holm_by_hand(self) -> None:
        # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (held up by 0.06), 0.5 * 1.
        assert holm({"a": 0.02, "b": 0.5, "c": 0.01, "d": 0.03}) == pytest.approx({"a": 0.06, "b": 0.5, "c": 0.04, "d": 0.06})
        assert holm({"a": 0.02, "b": None}) == {"a": 0.04, "b": None}

    @given(st.dictionaries(st.text(min_size=1), values, min_size=1, max_size=10))
    def test_holm_lies_between_the_raw_p_and_bonferroni(self, ps: dict[str, float]) -> None:
        adjusted = holm(dict(ps))
        for name, p in ps.items():
            value = adjusted[name]
            assert value is not None
            assert p - 1e-15 <= value <= min(1.0, p * len(ps)) + 1e-15
        order = sorted(ps, key=lambda name: ps[name])
        assert [adjusted[n] for n in order] == sorted(adjusted[n] for n in order if adjusted[n] is not None)

    def test_rows(self) -> None:
        rows = compare(results(kd=[0.8, 0.9], greedy=[0.84, 0.92]), {"kd": "", "greedy": "kd"})
        kd, greedy = rows
        assert kd["difference_mean"] is None
        assert kd["test_accuracy_mean"] == pytest.approx(0.85)
        assert kd["test_accuracy_sd"] == pytest.approx(0.1 / math.sqrt(2))
        assert greedy["difference_mean"] == pytest.approx(0.03)
        assert greedy["p"] == greedy["p_holm"]

    def test_what_is_not_paired_is_refused(self) -> None:
        with pytest.raises(InputError, match="different seeds"):
            by_branch(results(kd=[0.8, 0.9], greedy=[0.8]))
        with pytest.raises(InputError, match="has a seed twice"):
            by_branch([*results(kd=[0.8]), *results(kd=[0.8])])

    def test_results_of_other_data_are_refused_by_name(self) -> None:
        require_same_data({"kd/seed-0": "a" * 64, "greedy/seed-0": "a" * 64})
        with pytest.raises(InputError, match=r"greedy/seed-1.*bbbb.*differ from the data of the others \(aaaa"):
            require_same_data({"kd/seed-0": "a" * 64, "greedy/seed-0": "a" * 64, "greedy/seed-1": "b" * 64})


class TestVerdict:
    def said(self, routes: tuple[str, ...] = ("greedy",), **accuracies: list[float]) -> str:
        references = {name.replace("_", "-"): "" if name == "kd" else "kd" for name in accuracies}
        found = results(**accuracies)
        return "\n".join(verdict(compare(found, references), found, routes, 360))

    def test_an_interval_that_holds_zero_is_no_difference(self) -> None:
        text = self.said(kd=[0.90, 0.91, 0.92], greedy=[0.91, 0.90, 0.93])
        assert "greedy against kd: +0.33 points (95 % interval -2.54 to +3.20): no difference found." in text

    def test_a_clear_difference_has_a_direction(self) -> None:
        text = self.said(kd=[0.90, 0.91, 0.92, 0.90], greedy=[0.95, 0.961, 0.969, 0.952])
        assert "Holm p = 0.000): better." in text
        text = self.said(kd=[0.95, 0.961, 0.969, 0.952], greedy=[0.90, 0.91, 0.92, 0.90])
        assert ": worse." in text

    def test_many_comparisons_ask_for_more(self) -> None:
        kd, better = [0.90, 0.91, 0.92, 0.90], [0.91, 0.923, 0.929, 0.912]
        noise = {f"b{i}": [0.91, 0.90, 0.93, 0.89] for i in range(40)}
        assert "greedy against kd: +1.10 points" in self.said(kd=kd, greedy=better)
        alone = next(line for line in self.said(kd=kd, greedy=better).splitlines() if line.startswith("greedy"))
        among = next(line for line in self.said(kd=kd, greedy=better, **noise).splitlines() if line.startswith("greedy"))
        assert alone.endswith("better.")
        assert "among so many comparisons that is not enough; no difference is claimed" in among

    def test_one_seed_says_nothing(self) -> None:
        text = self.said(kd=[0.9], greedy=[0.99])
        assert "with one seed: no interval, so nothing can be said" in text
        assert "better" not in text

    def test_equal_differences_ask_for_more_seeds(self) -> None:
        assert "run more seeds" in self.said(kd=[0.90, 0.91], greedy=[0.91, 0.92])
        assert "no difference found (equal in all 2 seeds)" in self.said(kd=[0.90, 0.91], greedy=[0.90, 0.91])

    def test_the_best_strategy_is_named_with_those_it_cannot_be_told_from(self) -> None:
        text = self.said(("greedy", "lr-decay"), kd=[0.9, 0.8], greedy=[0.91, 0.84], lr_decay=[0.90, 0.81])
        assert "Highest mean among the branches that follow the route: greedy (87.50 %), not told apart from lr-decay." in text

    def test_the_unit_is_said(self) -> None:
        text = self.said(kd=[0.9, 0.8], greedy=[0.91, 0.84])
        assert "What was repeated is the student's seed (2 of them)" in text
        assert "one image is 0.28 points" in text


class TestReport:
    def test_csv_reads_back(self, tmp_path: Path) -> None:
        import csv

        rows = [dataclasses.asdict(result) for result in results(kd=[0.8, 0.9])]
        read = list(csv.DictReader(as_csv([{**row, "note": 'a,"b"'} for row in rows]).splitlines()))
        assert [float(row["test_accuracy"]) for row in read] == [0.8, 0.9]
        assert read[0]["note"] == 'a,"b"'

    def test_unseen_classes_have_a_table_of_their_own(self) -> None:
        open_set = {"teacher": {"open_rank1_at_10": 0.4}, "kd": {"open_rank1_at_10": [0.25, 0.05]}}
        heads, rows = _open_set_table(open_set)
        assert heads == ["", "rank1 at 10"]
        assert rows == [["teacher", "40.00 %"], ["kd", "25.00 ± 5.00 %"]]

    @pytest.mark.parametrize("kind", KINDS)
    def test_names_of_metrics_are_what_mlflow_allows(self, kind: str) -> None:
        from mlflow.utils.validation import _validate_metric_name

        for cell in ("", " tau=2", " milestones=0.5,0.75", " student=my.models:Net"):
            _validate_metric_name(f"{metric_name(kind + cell)}/test_accuracy_mean")

    def test_pictures(self) -> None:
        from rco.reporting.figures import comparison

        one = comparison.curves_figure({"kd": [[0.5, 0.8], [0.6, 0.9]], "scratch": [[0.5]]}, 0.95)
        lines = {line.get_label(): line for line in one.axes[0].lines}
        np.testing.assert_allclose(lines["kd"].get_ydata(), [55, 85])
        assert len(one.axes[0].collections) == 1, "one seed has no band"
        rows = [{"branch": "a", "reference": "kd", "difference_mean": 0.01, "difference_low": None, "difference_high": None}]
        assert comparison.differences_figure(rows).axes[0].get_yticklabels()[0].get_text() == "a − kd"
        with pytest.raises(InputError, match="unequal"):
            comparison.curves_figure({"kd": [[0.5, 0.8], [0.6]]})
        with pytest.raises(InputError, match="is empty"):
            comparison.curves_figure({})


def test_read_seeds_takes_what_kubeflow_hands_over() -> None:
    assert read_seeds([2.0, 0.0]) == (0, 2)
