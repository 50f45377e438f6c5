"""Choice of anchors: known answers on hand-made routes, and what must hold for every route."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.core.errors import InputError
from rco.strategies.anchors import Choice, equal_interval, explicit, lr_decay, next_anchor, plan, stage_count, stage_epochs
from rco.strategies.config import AnchorConfig
from rco.strategies.hardness import FLOOR, kl, relative, route_hardness

routes = st.sets(st.integers(1, 300), min_size=1, max_size=40).map(lambda s: tuple(sorted(s)))


def walk(config: AnchorConfig, epochs: tuple[int, ...], rows: list[list[float]], decays: tuple[int, ...] = ()) -> list[Choice]:
    """Follow a strategy to its end; rows[i] is the hardness row of the student after stage i (row 0: the initial one)."""
    chosen: list[Choice] = []
    while True:
        row = np.array(rows[min(len(chosen), len(rows) - 1)])
        choice = next_anchor(config, epochs, decays, chosen=[c.index for c in chosen], hardness=row)
        if choice is None:
            return chosen
        chosen.append(choice)


class TestEqualInterval:
    def test_known_answer(self) -> None:
        assert equal_interval(range(1, 241), 4) == (60, 120, 180, 240)
        assert equal_interval(range(10, 101, 10), 3) == (30, 70, 100)  # 33.3 and 66.7, rounded to the route

    def test_nearest_checkpoint_the_earlier_of_two(self) -> None:
        assert equal_interval((4, 8, 12), 2) == (4, 12)  # 6 lies between 4 and 8

    def test_one_anchor_is_plain_distillation(self) -> None:
        assert equal_interval((5, 10, 20), 1) == (20,)

    def test_crowded_route_still_gives_distinct_anchors(self) -> None:
        assert equal_interval((97, 98, 99, 100), 4) == (97, 98, 99, 100)
        assert equal_interval((1, 2, 3, 100), 3) == (2, 3, 100)

    def test_more_anchors_than_checkpoints(self) -> None:
        with pytest.raises(InputError, match=r"n_anchors = 4.*3 checkpoints"):
            equal_interval((1, 2, 3), 4)

    @given(routes, st.data())
    def test_always_n_increasing_anchors_of_the_route_ending_at_the_teacher(
        self, epochs: tuple[int, ...], data: st.DataObject
    ) -> None:
        n = data.draw(st.integers(1, len(epochs)))
        chosen = equal_interval(epochs, n)
        assert len(chosen) == n
        assert list(chosen) == sorted(set(chosen))
        assert set(chosen) <= set(epochs)
        assert chosen[-1] == epochs[-1]


class TestDecay:
    def test_last_checkpoint_before_each_decay_then_the_teacher(self) -> None:
        assert lr_decay((40, 80, 120, 150, 160, 180, 210, 240), (150, 180, 210)) == (150, 180, 210, 240)
        assert lr_decay((40, 80, 120, 160, 200, 240), (150, 180)) == (120, 160, 240)

    def test_decays_between_the_same_checkpoints_count_once(self) -> None:
        assert lr_decay((10, 20, 30), (11, 12, 25)) == (10, 20, 30)

    def test_refused_without_decays_or_early_checkpoints(self) -> None:
        with pytest.raises(InputError, match="never decayed"):
            lr_decay((10, 20), ())
        with pytest.raises(InputError, match="no checkpoint up to the decay after epoch 5"):
            lr_decay((10, 20), (5,))


class TestExplicit:
    def test_the_users_list(self) -> None:
        assert explicit((5, 10, 15), (5, 15)) == (5, 15)

    def test_off_the_route(self) -> None:
        with pytest.raises(InputError, match=r"epoch 7 is not on the route.*5, 10"):
            explicit((5, 10), (7, 10))

    def test_short_of_the_teacher(self) -> None:
        with pytest.raises(InputError, match=r"converged teacher \(epoch 10\)"):
            explicit((5, 10), (5,))

    def test_out_of_order_is_refused_before_anything_else(self) -> None:
        with pytest.raises(InputError, match="not in increasing order"):
            AnchorConfig(strategy="explicit", anchor_epochs=(10, 5))


class TestGreedy:
    config = AnchorConfig(strategy="greedy", n_anchors=10, delta=1.5)

    def test_known_answer_on_a_hand_made_route(self) -> None:
        epochs = (10, 20, 30, 40, 50)
        rows = [
            [9, 9, 9, 9, 9],  # the initial student decides nothing: the first anchor is the first checkpoint
            [1.0, 1.2, 1.5, 1.6, 9],  # after anchor 0: up to r = 1.5 -> index 2
            [9, 9, 2.0, 3.2, 3.0],  # after anchor 2: r = 1.6 > 1.5 at once -> index 3
            [9, 9, 9, 1.0, 1.4],  # after anchor 3: the end
        ]
        chosen = walk(self.config, epochs, rows)
        assert [c.epoch for c in chosen] == [10, 30, 40, 50]
        assert [c.last for c in chosen] == [False, False, False, True]
        assert "r = 1.50 <= 1.5; epoch 40 has r = 1.60" in chosen[1].reason
        assert "r = 1.60 > 1.5" in chosen[2].reason

    def test_a_dip_beyond_a_hard_checkpoint_is_not_leapt_to(self) -> None:
        choice = next_anchor(self.config, (1, 2, 3, 4, 5), (), chosen=[0], hardness=np.array([1, 1.2, 9, 1.0, 9.0]))
        assert choice is not None
        assert choice.index == 1

    def test_first_epoch(self) -> None:
        config = AnchorConfig(strategy="greedy", first_epoch=20)
        choice = next_anchor(config, (10, 20, 30), ())
        assert choice is not None
        assert choice.epoch == 20
        with pytest.raises(InputError, match=r"first_epoch = 25.*10, 20, 30"):
            plan(AnchorConfig(strategy="greedy", first_epoch=25), (10, 20, 30), ())

    def test_single_checkpoint_is_plain_distillation(self) -> None:
        chosen = walk(self.config, (200,), [[1.0]])
        assert [(c.epoch, c.last) for c in chosen] == [(200, True)]

    def test_maximum_of_stages_ends_at_the_teacher(self) -> None:
        config = AnchorConfig(strategy="greedy", n_anchors=3, delta=1.0)
        hard = [[1.0, *[9.0] * 19]] * 3
        chosen = walk(config, tuple(range(1, 21)), hard)
        assert [c.epoch for c in chosen] == [1, 2, 20]

    def test_floor_keeps_a_perfect_student_moving(self) -> None:
        assert relative(np.array([0.0, FLOOR]), 0)[1] == pytest.approx(1.0)

    @given(routes, st.data())
    def test_advances_ends_at_the_teacher_and_never_exceeds_the_maximum(
        self, epochs: tuple[int, ...], data: st.DataObject
    ) -> None:
        config = AnchorConfig(
            strategy="greedy",
            n_anchors=data.draw(st.integers(1, 12)),
            delta=data.draw(st.floats(0.01, 100)),
            first_epoch=data.draw(st.sampled_from((0, *epochs))),
        )
        row = st.lists(st.floats(0, 50), min_size=len(epochs), max_size=len(epochs))
        rows = [data.draw(row) for _ in range(min(config.n_anchors, 4))]
        chosen = walk(config, epochs, rows)
        indices = [c.index for c in chosen]
        assert indices == sorted(set(indices)), "the route always advances"
        assert chosen[-1].index == len(epochs) - 1, "it ends at the converged teacher"
        assert [c.last for c in chosen] == [*[False] * (len(chosen) - 1), True]
        assert 1 <= len(chosen) <= min(config.n_anchors, len(epochs)), "the maximum is never exceeded"
        assert [c.stage for c in chosen] == list(range(1, len(chosen) + 1))


@given(routes, st.sampled_from(["equal-interval", "greedy"]), st.integers(1, 12), st.integers(1, 400))
def test_stage_epochs_add_up_to_the_students_epochs(epochs: tuple[int, ...], strategy: str, n: int, spare: int) -> None:
    config = AnchorConfig(strategy=strategy, n_anchors=min(n, len(epochs)), delta=1.2)
    stages = stage_count(config, epochs, ())
    total = stages + spare
    rows = [list(np.linspace(1, 3, len(epochs)))]
    lengths = [stage_epochs(total, stages, c.stage, last=c.last) for c in walk(config, epochs, rows)]
    assert sum(lengths) == total
    assert min(lengths) >= 1
    assert len(set(lengths[:-1])) <= 1, "all stages but the last are equally long"


class TestHardness:
    def test_rows_are_kl_per_checkpoint(self) -> None:
        rng = np.random.default_rng(0)
        route, student = rng.normal(size=(4, 7, 5)), rng.normal(size=(7, 5))
        row = route_hardness(route, student, 4.0)
        assert row == pytest.approx([kl(c, student, 4.0) for c in route])

    def test_float64_reference(self) -> None:
        rng = np.random.default_rng(1)
        teacher, student = rng.normal(size=(6, 3)) * 3, rng.normal(size=(6, 3)) * 3
        total = 0.0
        for t, s in zip(teacher, student, strict=True):
            p, q = np.exp(t / 2) / np.exp(t / 2).sum(), np.exp(s / 2) / np.exp(s / 2).sum()
            total += float((p * np.log(p / q)).sum())
        assert kl(teacher, student, 2.0) == pytest.approx(total / 6, rel=1e-12)

    def test_agrees_with_the_training_loss(self) -> None:
        import torch

        from rco.objectives.route import mimic_kl

        rng = np.random.default_rng(2)
        teacher, student = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
        assert kl(teacher, student, 4.0) == pytest.approx(
            mimic_kl(torch.from_numpy(student), torch.from_numpy(teacher), 4.0).item(), rel=1e-5
        )

    def test_other_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="not of the same"):
            route_hardness(np.zeros((2, 3, 4)), np.zeros((5, 4)), 1.0)
