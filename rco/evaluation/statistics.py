"""Statistics of a comparison: paired differences, intervals, and a verdict in words. Pure functions.

The unit of observation is the seed of the student, given one teacher and one test part. Because branches share their
seeds, a branch is compared with its reference by the differences within seeds (a paired t interval).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rco.core.errors import InputError

LEVEL = 0.95


def require_same_data(digests: Mapping[str, str]) -> None:
    """Refuse to compare results of different data.

    Args:
        digests: name of a trained model -> digest of its prepared data set.

    Raises:
        InputError: naming those that differ from the majority.
    """
    if len(set(digests.values())) < 2:
        return
    counts = {digest: list(digests.values()).count(digest) for digest in digests.values()}
    usual = max(counts, key=lambda digest: counts[digest])
    others = {name: digest[:12] for name, digest in digests.items() if digest != usual}
    raise InputError(
        "data",
        others,
        f"differ from the data of the others ({usual[:12]})",
        "Compare only what was trained and tested on the same prepared data set",
    )


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one student of one branch. Accuracies are 0 to 1."""

    branch: str
    seed: int
    test_accuracy: float
    val_accuracy: float
    congruence_kl: float
    student_epochs: int
    teacher_forward_passes: int
    train_seconds: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences within seeds. `low`, `high` and `p` are None where a t interval does not exist."""

    mean: float
    low: float | None
    high: float | None
    p: float | None


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n - 1 (None for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired(values: Sequence[float], reference: Sequence[float], level: float = LEVEL) -> Paired:
    """Mean of the differences values - reference, its t interval, and the two-sided p of the paired t test.

    With one pair there is no interval; nor if all differences are equal: accuracy moves in steps, and a deviation
    of zero over a few seeds does not prove certainty.

    Args:
        values: (S,), one per seed.
        reference: (S,), of the same seeds in the same order.
    """
    differences = [v - r for v, r in zip(values, reference, strict=True)]
    mean, deviation = mean_and_deviation(differences)
    scale = max(1e-300, *(abs(v) for v in (*values, *reference)))
    if deviation is None or deviation <= 1e-12 * scale:
        return Paired(mean=mean, low=None, high=None, p=None)
    from scipy.stats import t

    degrees = len(differences) - 1
    error = deviation / math.sqrt(len(differences))
    half = float(t.ppf(0.5 + level / 2, degrees)) * error
    return Paired(mean=mean, low=mean - half, high=mean + half, p=float(2 * t.sf(abs(mean) / error, degrees)))


def holm(ps: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjustment (1979) for several comparisons; one without a p counts as a comparison that found nothing."""
    adjusted: dict[str, float | None] = dict.fromkeys(ps)
    running = 0.0
    for rank, (name, p) in enumerate(sorted(((n, p) for n, p in ps.items() if p is not None), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(ps) - rank) * p))
        adjusted[name] = running
    return adjusted


def by_branch(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each branch, by seed.

    Raises:
        InputError: a student twice, or branches that do not have the same seeds.
    """
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.branch, []).append(result)
    for name, group in grouped.items():
        group.sort(key=lambda result: result.seed)
        seeds = [result.seed for result in group]
        if len(set(seeds)) < len(seeds):
            raise InputError("results", name, f"has a seed twice ({seeds})", "Give each student once")
    seeds_of = {name: tuple(result.seed for result in group) for name, group in grouped.items()}
    if len(set(seeds_of.values())) > 1:
        raise InputError(
            "results", seeds_of, "are of different seeds", "Paired differences need the same seeds in all branches"
        )
    return grouped


def compare(results: Iterable[Result], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a branch: mean, deviation, and the paired difference to its reference, in the order of `references`.

    Args:
        references: branch -> the branch that it is compared with; empty: the branch is a reference.

    Returns:
        rows, JSON-ready; accuracies and their differences are 0 to 1. `p_holm` corrects for all comparisons in the table.
    """
    grouped = by_branch(results)
    pairs = {
        name: paired([r.test_accuracy for r in grouped[name]], [r.test_accuracy for r in grouped[reference]])
        for name, reference in references.items()
        if reference
    }
    adjusted = holm({name: pair.p for name, pair in pairs.items()})
    rows = []
    for name, reference in references.items():
        group = grouped[name]
        mean, deviation = mean_and_deviation([r.test_accuracy for r in group])
        pair = pairs.get(name)
        rows.append(
            {
                "branch": name,
                "reference": reference,
                "seeds": len(group),
                "test_accuracy_mean": mean,
                "test_accuracy_sd": deviation,
                "difference_mean": pair.mean if pair else None,
                "difference_low": pair.low if pair else None,
                "difference_high": pair.high if pair else None,
                "p": pair.p if pair else None,
                "p_holm": adjusted.get(name),
                "val_accuracy_mean": mean_and_deviation([r.val_accuracy for r in group])[0],
                "congruence_kl_mean": mean_and_deviation([r.congruence_kl for r in group])[0],
                "congruence_kl_sd": mean_and_deviation([r.congruence_kl for r in group])[1],
                "student_epochs": group[0].student_epochs,
                "teacher_forward_passes": mean_and_deviation([float(r.teacher_forward_passes) for r in group])[0],
                "train_seconds": mean_and_deviation([r.train_seconds for r in group])[0],
            }
        )
    return rows


def verdict(rows: Sequence[Mapping[str, Any]], results: Iterable[Result], routes: Sequence[str], test_images: int) -> list[str]:
    """The conclusions that the table allows, in sentences.

    Args:
        rows: of `compare`.
        routes: the branches that follow the route.
        test_images: size of the test part.
    """
    alpha = 1 - LEVEL
    compared = [row for row in rows if row["reference"]]
    seeds = rows[0]["seeds"]
    sentences = [_about(row, seeds, alpha) for row in compared]
    if any(row["p_holm"] is not None for row in compared) and len(compared) > 1:
        sentences.append(
            f"{len(compared)} comparisons are made here: a difference is claimed only where the p of the paired t test, "
            f"corrected by Holm's method for all of them, is below {alpha:.2g}. The intervals are not corrected."
        )
    sentences += _best(by_branch(results), routes, alpha)
    sentences.append(
        f"What was repeated is the student's seed ({seeds} of them): this speaks of this teacher and this test part of "
        f"{test_images:,} images, where one image is {100 / test_images:.2g} points. Another teacher or other data may differ."
    )
    return sentences


def _about(row: Mapping[str, Any], seeds: int, alpha: float) -> str:
    name, points = row["branch"], 100 * row["difference_mean"]
    versus = f"{name} against {row['reference']}: {points:+.2f} points"
    if seeds < 2:
        return f"{versus} with one seed: no interval, so nothing can be said about a difference."
    if row["p"] is None:
        if abs(points) < 1e-9:
            return f"{versus}: no difference found (equal in all {seeds} seeds)."
        return f"{versus}, the same in all {seeds} seeds: a t interval cannot be had from that; run more seeds."
    interval = f"95 % interval {100 * row['difference_low']:+.2f} to {100 * row['difference_high']:+.2f}"
    if row["p_holm"] < alpha:
        return f"{versus} ({interval}, Holm p = {row['p_holm']:.3f}): {'better' if points > 0 else 'worse'}."
    if row["p"] < alpha:
        return (
            f"{versus} ({interval}, Holm p = {row['p_holm']:.3f}): the interval leaves out zero, but among so many comparisons "
            "that is not enough; no difference is claimed."
        )
    return f"{versus} ({interval}): no difference found."


def _best(grouped: Mapping[str, Sequence[Result]], routes: Sequence[str], alpha: float) -> list[str]:
    """The best branch that follows the route, if it differs from the others; picked afterwards, and the sentence says so."""
    if len(routes) < 2:
        return []
    accuracies = {name: [r.test_accuracy for r in grouped[name]] for name in routes}
    means = {name: mean_and_deviation(values)[0] for name, values in accuracies.items()}
    top = max(means.values())
    leaders = [name for name in routes if math.isclose(means[name], top, rel_tol=0, abs_tol=1e-12)]
    if len(leaders) > 1:
        return [f"Highest mean among the branches that follow the route: {' and '.join(leaders)}, level."]
    best = leaders[0]
    adjusted = holm({name: paired(accuracies[best], accuracies[name]).p for name in routes if name != best})
    unsure = [name for name, p in adjusted.items() if p is None or p >= alpha]
    certainty = f"not told apart from {', '.join(unsure)}" if unsure else "told apart from each of the others (Holm)"
    return [
        f"Highest mean among the branches that follow the route: {best} ({100 * top:.2f} %), {certainty}. It was picked after "
        "looking: to confirm it, run other seeds."
    ]
