"""Does the teacher's curve alone tell sign and size of route minus plain distillation, before any student is trained?

prediction.yaml holds the rule, and the settings that it was written on; all other settings that have both branches count it.
What is looked at is known once the teacher is trained:

    rise       NLL on the validation part at the last checkpoint, less the smallest along the route (nats, tau = 1)
    overfit    accuracy on the training images (without augmentation) less that on the validation part, at the end (points)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.evidence.page import interval_of
from benchmarks.evidence.plan import Plan
from benchmarks.evidence.records import groups
from rco.core.errors import choice
from rco.core.settings import from_dict
from rco.evaluation.statistics import Paired, mean_and_deviation, paired

RULE = Path(__file__).with_name("prediction.yaml")
_KD, _ROUTE = {"kind": "kd"}, {"kind": "equal-interval", "n_anchors": 4}
_LEAST_SEEDS = 5
FEATURES = ("rise", "overfit")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What prediction.yaml says.

    Args:
        written: when, and knowing what.
        feature: one of `FEATURES`.
        threshold: where it is larger, the route is better; elsewhere it is not.
        first: the settings that the rule was written on.
    """

    written: str
    feature: str
    threshold: float
    first: list[str]

    def __post_init__(self) -> None:
        choice("feature", self.feature, FEATURES)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A teacher, what its curve tells, and what came of its students. `rise` in nats, `overfit` and `points` in points,
    `kl` the congruence of the students with the converged teacher at the end (nats): of plain distillation, of the route.
    `routes`: that its students followed, each of a teacher with its own bits."""

    setting: str
    teacher_seed: int
    routes: frozenset[str]
    plan: str
    rise: float
    overfit: float
    seeds: int
    difference: Paired
    kl: tuple[float, float]

    @property
    def points(self) -> float:
        """Route minus plain distillation."""
        return 100 * self.difference.mean


def read_rule(path: Path = RULE) -> Rule:
    """The rule of a file.

    Raises:
        InputError: it says something that cannot be.
    """
    return from_dict(Rule, yaml.safe_load(path.read_text()))


def points_of(plans: Iterable[tuple[Plan, list[dict[str, Any]]]]) -> list[Point]:
    """A point for each teacher of a setting that plain distillation and the route of four anchors have students of. Of plans
    that share students, the one with the most seeds counts; a teacher that was trained again, on another processor, is another
    one."""
    found: list[Point] = []
    for plan, records in plans:
        names = [next((name for name, own in plan.branches.items() if own == of), "") for of in (_KD, _ROUTE)]
        if not all(names):
            continue
        by_teacher: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for (setting, teacher_seed, _), branches in sorted(groups(plan, records).items()):
            if {*names} <= {*branches}:
                by_teacher.setdefault((setting, teacher_seed), []).append({name: branches[name] for name in names})
        for key, pairs in by_teacher.items():
            point = _point(plan, key, pairs, *names)
            same = [old for old in found if (old.setting, old.teacher_seed) == key and old.routes & point.routes]
            if point.seeds >= max([_LEAST_SEEDS, *(old.seeds + 1 for old in same)]):
                found = [old for old in found if old not in same] + [point]
    return found


def _point(plan: Plan, key: tuple[str, int], pairs: Sequence[Mapping[str, Any]], kd: str, route: str) -> Point:
    teacher = pairs[0][kd]["teacher"]
    nll = [point[2] for point in teacher["val"]]
    return Point(
        setting=key[0],
        teacher_seed=key[1],
        routes=frozenset(record["route"] for pair in pairs for record in pair.values()),
        plan=plan.name,
        rise=nll[-1] - min(nll),
        overfit=100 * (teacher["train_accuracy"] - teacher["val"][-1][1]),
        seeds=len(pairs),
        difference=paired([pair[route]["test_accuracy"] for pair in pairs], [pair[kd]["test_accuracy"] for pair in pairs]),
        kl=(_mean_kl(pairs, kd), _mean_kl(pairs, route)),
    )


def _mean_kl(pairs: Sequence[Mapping[str, Any]], branch: str) -> float:
    return mean_and_deviation([pair[branch]["curve"]["kl_to_teacher"][-1] for pair in pairs])[0]


def counted(rule: Rule, points: Iterable[Point]) -> tuple[int, int]:
    """How many signs the rule has told, and of how many points; a difference of 0 is not better."""
    told = [(getattr(point, rule.feature) > rule.threshold) == (point.points > 0) for point in points]
    return sum(told), len(told)


def line_of(feature: str, points: Sequence[Point]) -> tuple[float, float]:
    """Slope (points for each unit of the feature) and height at 0 of the straight line of least squares."""
    x, y = [getattr(point, feature) for point in points], [point.points for point in points]
    slope, height = np.polyfit(x, y, 1)
    return float(slope), float(height)


def render_prediction(rule: Rule, points: Sequence[Point]) -> str:
    """The page, Markdown."""
    first = [point for point in points if point.setting in rule.first]
    others = [point for point in points if point.setting not in rule.first]
    lines = [
        "# A prediction from the teacher's curve",
        "",
        "Made by `make evidence-pages` from [the rule](../prediction.yaml) and the records; do not edit.",
        "",
        "Does the teacher's curve alone tell, before any student is trained, whether the route (four anchors at equal "
        "intervals, restarts) beats plain distillation, and by how much? `rise`: NLL on the validation part at the last "
        "checkpoint less the smallest along the route, in nats at tau = 1. `overfit`: accuracy on the training images less "
        "that on the validation part, in points. A setting and a teacher's seed are there twice where two processors have "
        "trained that teacher: it is another one then, if only by its last bits.",
        "",
        f"**The rule**, {rule.written.strip()}: the route is better where {rule.feature} is above {rule.threshold:g}.",
        "",
        *_half("The settings that the rule was written on", rule, first),
        *_half("All others", rule, others),
    ]
    if len(first) > 2 and others:
        lines += _sizes(first, others)
    lines += _congruence(points)
    return "\n".join(lines).rstrip() + "\n"


def _half(title: str, rule: Rule, points: Sequence[Point]) -> list[str]:
    lines = [f"## {title}", ""]
    if not points:
        return [*lines, "None has been run.", ""]
    lines += [
        "| setting | teacher | rise | overfit | seeds | route minus kd, points | 95 % interval | the rule says | |",
        "|---" * 9 + "|",
    ]
    for point in sorted(points, key=lambda point: -getattr(point, rule.feature)):
        better = getattr(point, rule.feature) > rule.threshold
        lines.append(
            f"| [{point.setting}]({point.plan}.md) | {point.teacher_seed} | {point.rise:.2f} | {point.overfit:.1f} | "
            f"{point.seeds} | {point.points:+.2f} | {interval_of(point.difference)} | {'better' if better else 'not better'} | "
            f"{'told' if better == (point.points > 0) else 'missed'} |"
        )
    right, whole = counted(rule, points)
    sure = [p for p in points if p.difference.low is not None and (p.difference.low > 0 or (p.difference.high or 0.0) < 0)]
    right_sure, whole_sure = counted(rule, sure)
    always = sum(point.points <= 0 for point in points)
    return [
        *lines,
        "",
        f"The rule tells {right} of {whole} signs; of those whose interval leaves out 0, {right_sure} of {whole_sure}. "
        f'"Never better" would tell {always} of {whole}.',
        "",
    ]


def _sizes(first: Sequence[Point], others: Sequence[Point]) -> list[str]:
    lines = [
        "## Sizes",
        "",
        "A straight line through the first half, and how far it is from the others (mean absolute error), beside their "
        "distance from the first half's mean, which looks at nothing.",
        "",
        "| feature | points for each nat, or point | error on the others | of the mean |",
        "|---|---|---|---|",
    ]
    mean = mean_and_deviation([point.points for point in first])[0]
    plain = mean_and_deviation([abs(point.points - mean) for point in others])[0]
    for feature in FEATURES:
        slope, height = line_of(feature, first)
        error = mean_and_deviation([abs(p.points - slope * getattr(p, feature) - height) for p in others])[0]
        lines.append(f"| {feature} | {slope:+.3f} | {error:.2f} | {plain:.2f} |")
    return [*lines, ""]


def _congruence(points: Sequence[Point]) -> list[str]:
    """The paper's reason for the route: it lowers the bound of the congruence loss."""
    if not points:
        return []
    closer = [point for point in points if point.kl[1] < point.kl[0]]
    agree = sum((point.kl[1] < point.kl[0]) == (point.points > 0) for point in points)
    lines = [
        "## Does the route bring the student closer to the teacher?",
        "",
        "The paper's reason for the route is that it lowers the bound of the congruence loss. KL of the converged teacher's "
        "answers to the student's on the probe samples at the end of training, at the objective's temperature, in nats; means "
        "over the seeds.",
        "",
        "| setting | teacher | kd | route | route minus kd, points of accuracy |",
        "|---" * 5 + "|",
    ]
    rows = [
        f"| {p.setting} | {p.teacher_seed} | {p.kl[0]:.4f} | {p.kl[1]:.4f} | {p.points:+.2f} |"
        for p in sorted(points, key=lambda point: point.kl[1] / point.kl[0])
    ]
    return [
        *lines,
        *rows,
        "",
        f"It is lower after the route in {len(closer)} of {len(points)}. Lower KL and higher accuracy go together in {agree} "
        f"of {len(points)}.",
    ]
