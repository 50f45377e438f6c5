"""A race of branches: what it costs, whom it drops, and how often it keeps the better one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.core.errors import InputError
from rco.evaluation.race import RacePlan, after_round, plan_race


def raced(plan: RacePlan, accuracies: dict[str, list[float]]) -> str:
    """The winner.

    Args:
        accuracies: challenger -> validation accuracy of every race seed.
    """
    alive = tuple(accuracies)
    for number, count in enumerate(plan.rounds):
        assert len(alive) == count
        until = plan.seeds_of_round(number).stop
        alive, _ = after_round({name: accuracies[name][:until] for name in alive})
    (winner,) = alive
    return winner


@given(branches=st.integers(3, 24), seeds=st.integers(1, 30))
def test_never_more_than_the_full_comparison_and_no_seed_is_in_both(branches: int, seeds: int) -> None:
    refused = None
    try:
        plan = plan_race(branches, seeds)
    except InputError as error:
        refused = error
    if refused is not None:
        assert refused.parameter == "seeds"
        plan = plan_race(branches, int(refused.remedy.split()[1]))
        assert seeds < plan.full // branches, "what is advised is more"
        seeds = plan.full // branches
    assert plan.students <= plan.full == branches * seeds
    assert plan.full - plan.students <= 1, "what the race leaves, the final has"
    assert plan.final_seeds >= seeds
    assert plan.rounds[0] == branches - 1
    assert plan.rounds[-1] == 2
    seen = [position for number in range(len(plan.rounds)) for position in plan.seeds_of_round(number)]
    assert [*seen, *plan.seeds_of_final] == list(range(plan.race_seeds + plan.final_seeds))


@pytest.mark.parametrize(("branches", "seeds", "gap"), [(6, 3, 3.0), (6, 5, 2.5), (6, 10, 1.5), (3, 10, 1.0), (13, 5, 3.0)])
def test_nine_of_ten_races_keep_the_better_branch(branches: int, seeds: int, gap: float) -> None:
    """The better one is `gap` standard deviations of a student's own luck better than the others, which are alike. The luck
    of a seed, which all branches share, may be any: it is three times as large here."""
    plan, rng, kept = plan_race(branches, seeds), np.random.default_rng(0), 0
    for better in rng.integers(0, branches - 1, 200):
        luck = 0.9 + 0.03 * rng.standard_normal(plan.race_seeds)
        own = 0.01 * rng.standard_normal((branches - 1, plan.race_seeds))
        own[better] += 0.01 * gap
        kept += raced(plan, {f"b{i}": list(luck + row) for i, row in enumerate(own)}) == f"b{better}"
    assert kept >= 180


def test_a_race_of_equals_has_no_favourite() -> None:
    plan, rng = plan_race(5, 5), np.random.default_rng(1)
    names = [raced(plan, {f"b{i}": list(row) for i, row in enumerate(rng.random((4, plan.race_seeds)))}) for _ in range(400)]
    assert all(60 <= names.count(f"b{i}") <= 140 for i in range(4))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(-0.5, 0.5))
def test_a_hard_seed_is_hard_for_all(means: list[float], shift: float) -> None:
    values = {f"b{i}": [round(mean, 3)] for i, mean in enumerate(means)}
    kept, dropped = after_round(values)
    assert len(kept) == -(-len(means) // 2)
    assert {*kept} | {d.branch for d in dropped} == {*values}
    assert list(kept) == [name for name in values if name in kept], "in the order of the table"
    assert min(values[name][0] for name in kept) >= max(values[d.branch][0] for d in dropped)
    moved = {name: [round(v + round(shift, 3), 3) for v in of] for name, of in values.items()}
    assert after_round(moved)[0] == kept


def test_words() -> None:
    kept, dropped = after_round({"greedy": [0.90, 0.92], "lr-decay": [0.91, 0.93]})
    assert kept == ("lr-decay",)
    assert [d.words for d in dropped] == [
        "greedy is dropped: 91.00 % on the validation part over 2 seeds, 1.00 points below the last that goes on"
    ]


def test_what_cannot_be_raced() -> None:
    with pytest.raises(InputError, match="nothing could be dropped"):
        plan_race(2, 10)
    with pytest.raises(InputError, match="Give 3 or more"):
        plan_race(6, 2)
    for values in ({"a": [0.5]}, {"a": [0.5], "b": [0.5, 0.5]}, {"a": [], "b": []}):
        with pytest.raises(InputError, match="same seeds"):
            after_round(values)
    with pytest.raises(InputError, match="not finite"):
        after_round({"a": [0.5], "b": [float("nan")]})


def test_a_tie_is_said_to_be_one() -> None:
    (kept, (dropped,)) = after_round({"one": [0.5, 0.7], "other": [0.5, 0.7]})
    assert kept == ("one",)
    assert dropped.words == (
        "other is dropped: 60.00 % on the validation part over 2 seeds, level with, and named after, the last that goes on"
    )
