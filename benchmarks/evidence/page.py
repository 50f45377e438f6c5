"""The page of a plan, and README's table, from the records alone: `python -m benchmarks.evidence page`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import LEVEL, POWER, Plan
from benchmarks.evidence.records import Found, groups
from rco.core.errors import InputError
from rco.evaluation.statistics import Paired, holm, mean_and_deviation, paired

PAGES = Path(__file__).with_name("pages")
BEGINS, ENDS = "<!-- evidence begins: made by `make evidence-pages` -->", "<!-- evidence ends -->"
_NO_ROUTE = ("scratch", "kd", "kd-restart", "checkpoint-ensemble")
_COLUMNS = (
    *("branch", "seeds", "test accuracy %", "difference, points", "95 % interval", "Holm p", "validation %"),
    *("KL to the teacher, stage by stage", "CPU seconds", "images", "teacher's images"),
)


def render(plan: Plan, records: Iterable[Mapping[str, Any]]) -> str:
    """The page of a plan, Markdown."""
    kept = [r for r in records if r["plan"] == plan.name]
    found = groups(plan, kept)
    done, whole = sum(map(len, found.values())), len(list(plan.students()))
    tests = "; ".join(f"`{b}` against `{r}`" for b, r in plan.tests.items()) or "none: this plan describes"
    lines = [
        f"# {plan.name}",
        "",
        "Made by `make evidence-pages` from the plan and its records; do not edit.",
        "",
        plan.question.strip(),
        "",
        f"**Run: {_state(done, whole)}.** {_ran(kept)}",
        "",
        "## Said before the runs",
        "",
        f"- Tests: {tests}. Differences within seeds, paired t intervals at {100 * (1 - LEVEL):.0f} %, p corrected by Holm's "
        f"method over the {len(plan.tests)} tests of a table.",
        f"- {plan.seeds} seeds, {plan.teacher_seeds} teacher{'s' * (plan.teacher_seeds > 1)} a setting. At an assumed "
        f"deviation of {plan.assumed_sd:g} points within a seed ({plan.assumed_from.strip()}), a true "
        f"difference of {plan.detects:g} points is found in {100 * POWER:.0f} of 100 cases, before Holm's "
        "correction. Smaller ones may be there and not be found.",
        "",
        *_branches(plan),
    ]
    for setting in plan.settings:
        for teacher_seed in range(plan.teacher_seeds):
            lines += _table(plan, setting, teacher_seed, found)
    return "\n".join(lines).rstrip() + "\n"


def _state(done: int, whole: int) -> str:
    if not done:
        return f"not run (0 of {whole} students)"
    return f"all {whole} students" if done == whole else f"{done} of {whole} students; the plan is not finished"


def _ran(records: list[Mapping[str, Any]]) -> str:
    if not records:
        return "What follows was planned, and nothing of it is known."
    machines = sorted({f"{r['machine']['processor']}, PyTorch {r['versions']['torch']}" for r in records})
    hours = sum(r["cost"]["seconds"] for r in records) / 3600
    days = sorted({r["finished"][:10] for r in records})
    return (
        f"{hours:.2f} hours of one process, of one thread, on a shared machine, {days[0]} to {days[-1]}; {'; '.join(machines)}."
    )


def _branches(plan: Plan) -> list[str]:
    lines = ["| branch | settings |", "|---|---|"]
    for name, own in plan.branches.items():
        lines.append(f"| `{name}` | {', '.join(f'{k} {_shown(v)}' for k, v in own.items())} |")
    return [*lines, ""]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(plan: Plan, setting: str, teacher_seed: int, found: Found) -> list[str]:
    """One setting with one teacher."""
    here = {seed: branches for (name, teacher, seed), branches in found.items() if (name, teacher) == (setting, teacher_seed)}
    lines = [
        f"## {setting}" + (f", teacher {teacher_seed}" if plan.teacher_seeds > 1 else ""),
        "",
        _described(plan, setting),
        "",
    ]
    if not here:
        return [*lines, "Not run.", ""]
    any_record = next(iter(next(iter(here.values())).values()))
    lines += [_teacher(any_record), ""]
    if len({record["route"] for branches in here.values() for record in branches.values()}) > 1:
        lines += [
            "The teacher was trained more than once, with other bits; within a seed all branches have the same one.",
            "",
        ]
    tested = comparisons(plan, here)
    adjusted = holm({branch: pair.p if pair else None for branch, (pair, _) in tested.items()})
    lines += [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for branch in plan.branches:
        of = [branches[branch] for branches in here.values() if branch in branches]
        if not of:
            lines.append(f"| `{branch}` | 0 | not run |{' |' * (len(_COLUMNS) - 3)}")
            continue
        pair, reference = tested.get(branch, (None, ""))
        difference = f"{100 * pair.mean:+.2f} to `{reference}`" if pair else ""
        interval = interval_of(pair) if pair else ""
        p = adjusted.get(branch)
        mean, deviation = mean_and_deviation([r["test_accuracy"] for r in of])
        accuracy = f"{100 * mean:.2f}" + (f" (sd {100 * deviation:.2f})" if deviation is not None else "")
        validation = mean_and_deviation([r["val_accuracy"] for r in of])[0]
        cost = [
            mean_and_deviation([float(r["cost"][name]) for r in of])[0] for name in ("cpu_seconds", "images", "teacher_images")
        ]
        lines.append(
            f"| `{branch}` | {len(of)} | {accuracy} | {difference} | {interval} | {'' if p is None else f'{p:.3f}'} "
            f"| {100 * validation:.2f} | {_congruence(of)} | {cost[0]:.0f} | {cost[1]:,.0f} | {cost[2]:,.0f} |"
        )
    return [*lines, "", *_sentences(tested, adjusted), *_tuned(plan, here), ""]


def _tuned(plan: Plan, here: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Each list of `tuned` by its best branch, of all whose students are there: chosen by validation, compared on the test."""
    best: dict[str, str] = {}
    for name, alike in plan.tuned.items():
        means = {
            branch: mean_and_deviation([branches[branch]["val_accuracy"] for branches in here.values()])[0]
            for branch in alike
            if all(branch in branches for branches in here.values())
        }
        if len(means) < len(alike):
            return []
        best[name] = max(means, key=means.__getitem__)
    lines = []
    for name, branch in list(best.items())[1:]:
        reference = best[next(iter(best))]
        pair = paired(
            [branches[branch]["test_accuracy"] for branches in here.values()],
            [branches[reference]["test_accuracy"] for branches in here.values()],
        )
        lines.append(
            f"- Tuned by validation accuracy, each alike: {name} (`{branch}`) against {next(iter(best))} (`{reference}`): "
            f"{100 * pair.mean:+.2f} points, {interval_of(pair) or 'no interval'} (not corrected)."
        )
    return lines


def comparisons(plan: Plan, here: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> dict[str, tuple[Paired | None, str]]:
    """branch -> paired difference of test accuracy (None: no seed has both) and its reference, for every test of the plan.

    Args:
        here: seed -> branch -> record.
    """
    out: dict[str, tuple[Paired | None, str]] = {}
    for branch, reference in plan.tests.items():
        both = [
            (b[branch]["test_accuracy"], b[reference]["test_accuracy"])
            for _, b in sorted(here.items())
            if {branch, reference} <= {*b}
        ]
        out[branch] = (paired([a for a, _ in both], [r for _, r in both]) if both else None, reference)
    return out


def _sentences(tested: Mapping[str, tuple[Paired | None, str]], adjusted: Mapping[str, float | None]) -> list[str]:
    lines = []
    for branch, (pair, reference) in tested.items():
        if pair is None:
            lines.append(f"- `{branch}` against `{reference}`: not run.")
        elif pair.p is None:
            lines.append(
                f"- `{branch}` against `{reference}`: {100 * pair.mean:+.2f} points; no interval can be had of these seeds."
            )
        else:
            word = _verdict(pair, adjusted[branch])
            lines.append(f"- `{branch}` against `{reference}`: {100 * pair.mean:+.2f} points: {word}.")
    return lines


def _described(plan: Plan, setting: str) -> str:
    own = plan.settings[setting]
    subset = (
        f"{own.subset.archive}, {own.subset.classes} classes x {own.subset.images} images (validation part included); "
        if own.subset
        else ""
    )
    return subset + ", ".join(f"{name} {_shown(value)}" for name, value in own.parameters.items()) + "."


def _teacher(record: Mapping[str, Any]) -> str:
    teacher, sizes = record["teacher"], record["data"]["sizes"]
    curve = teacher["val"]
    best, last = min(curve, key=lambda point: point[2]), curve[-1]
    return (
        f"{sizes['train']:,} training, {sizes['val']:,} validation, {sizes['test']:,} test images. Teacher {teacher['model']}: "
        f"{100 * teacher['train_accuracy']:.1f} % of its training images (without augmentation), "
        f"{100 * teacher['test_accuracy']:.2f} % of the test images; NLL on the validation part {best[2]:.2f} at epoch "
        f"{best[0]}, {last[2]:.2f} at the end (epoch {last[0]})."
    )


def _congruence(records: list[Mapping[str, Any]]) -> str:
    """KL to the converged teacher at the end of each stage, mean over the seeds, where all have as many stages."""
    ends = [[epoch for epoch, _ in record["stages"]] for record in records]
    if len({len(e) for e in ends}) > 1:
        return "stages differ"
    by_stage = zip(
        *([r["curve"]["kl_to_teacher"][e - 1] for e in of] for r, of in zip(records, ends, strict=True)), strict=True
    )
    return " ".join(f"{sum(column) / len(column):.3f}" for column in by_stage)


def readme_table(plans: Sequence[tuple[Plan, list[dict[str, Any]]]]) -> str:
    """README's block: a row for every setting in which all tests of its plan have as many seeds as were planned, of the plans
    that are for it."""
    rows = []
    for plan, records in plans:
        if not plan.in_readme:
            continue
        found = groups(plan, [r for r in records if r["plan"] == plan.name])
        for setting in plan.settings:
            for teacher_seed in range(plan.teacher_seeds):
                here = {seed: b for (name, t, seed), b in found.items() if (name, t) == (setting, teacher_seed)}
                if plan.tests and len(here) == plan.seeds and all({*plan.branches} <= {*b} for b in here.values()):
                    rows.append(_row(plan, setting, teacher_seed, here))
    head = ["| setting | test | seeds | difference, points | 95 % interval | |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", tally(plans)]) if rows else "No plan has been run to its end."


def tally(plans: Iterable[tuple[Plan, list[dict[str, Any]]]]) -> str:
    """What came of all tests of a route against plain distillation, those of other plans included; students that are the same
    to the last bit, as where two strategies choose the same anchors, count once."""
    counted: dict[tuple[frozenset[Any], ...], tuple[float, str]] = {}
    for plan, records in sorted(plans, key=lambda each: not each[0].in_readme):
        found = groups(plan, [r for r in records if r["plan"] == plan.name])
        for setting, teacher_seed in dict.fromkeys((name, teacher) for name, teacher, _ in found):
            here = {seed: b for (name, t, seed), b in found.items() if (name, t) == (setting, teacher_seed)}
            tested = comparisons(plan, here)
            adjusted = holm({branch: pair.p if pair else None for branch, (pair, _) in tested.items()})
            for branch, (pair, reference) in tested.items():
                kinds = plan.branches[branch]["kind"], plan.branches[reference]["kind"]
                both = [b for b in here.values() if {branch, reference} <= {*b}]
                if pair is None or kinds[0] in _NO_ROUTE or kinds[1] != "kd" or len(both) < plan.seeds:
                    continue
                key = tuple(
                    frozenset(
                        (b[name]["route"], b[name]["seed"], b[name]["test_accuracy"], b[name].get("test_nll")) for b in both
                    )
                    for name in (branch, reference)
                )
                counted.setdefault(key, (100 * pair.mean, _verdict(pair, adjusted[branch])))
    if not counted:
        return ""
    means, words = zip(*counted.values(), strict=True)
    better, worse = words.count("better"), words.count("worse")
    return (
        f"Of all {len(means)} tests of a route against plain distillation at equal epochs, other anchors, temperatures and "
        f"budgets included, {better} found it better, {worse} worse, {len(means) - better - worse} no difference; the "
        f"differences are {min(means):+.2f} to {max(means):+.2f} points, {sum(means) / len(means):+.2f} on average."
    )


def interval_of(pair: Paired) -> str:
    """In points; empty where there is none."""
    return "" if pair.low is None or pair.high is None else f"{100 * pair.low:+.2f} to {100 * pair.high:+.2f}"


def _verdict(pair: Paired, p: float | None) -> str:
    return ("better" if pair.mean > 0 else "worse") if p is not None and p < LEVEL else "no difference found"


def _row(plan: Plan, setting: str, teacher_seed: int, here: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """The first test of the plan, corrected for all of them."""
    tested = comparisons(plan, here)
    adjusted = holm({branch: pair.p if pair else None for branch, (pair, _) in tested.items()})
    branch, (pair, reference) = next(iter(tested.items()))
    assert pair is not None
    interval = interval_of(pair) or "none"
    word = _verdict(pair, adjusted[branch])
    name = f"[{setting}](benchmarks/evidence/pages/{plan.name}.md)" + (
        f", teacher {teacher_seed}" if plan.teacher_seeds > 1 else ""
    )
    return f"| {name} | {branch} against {reference} | {len(here)} | {100 * pair.mean:+.2f} | {interval} | {word} |"


def put_into(text: str, block: str) -> str:
    """README with another block between its marks.

    Raises:
        InputError: the marks are not there, once and in order.
    """
    before, begins, rest = text.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not begins or not ends or BEGINS in rest or ENDS in after:
        raise InputError(
            "README.md", BEGINS, "is not there once, with its end after it", f"Put {BEGINS} and {ENDS} around the table"
        )
    return f"{before}{BEGINS}\n{block}\n{ENDS}{after}"
