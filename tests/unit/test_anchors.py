"""Choice of anchors: known answers on hand-made routes, and what must hold for every route."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.core.errors import InputError
from rco.strategies.accuracy_interval import AccuracyInterval, accuracy_interval
from rco.strategies.base import STRATEGIES, Planned, Schedule, Strategy, StudentLevel, TrainedRoute
from rco.strategies.checkpoint_ensemble import CheckpointEnsemble, spread
from rco.strategies.config import AnchorConfig
from rco.strategies.equal_interval import equal_interval
from rco.strategies.explicit import explicit
from rco.strategies.greedy import Greedy
from rco.strategies.hardness import FLOOR, kl, relative, route_hardness
from rco.strategies.lr_decay import lr_decay
from rco.strategies.walk import Choice, next_anchor, planned_lengths, stage_epochs
from rco.strategies.worthy import Worthy

routes = st.sets(st.integers(1, 300), min_size=1, max_size=40).map(lambda s: tuple(sorted(s)))


def trained(epochs: Sequence[int], accuracies: Sequence[float] = (), decays: Sequence[int] = ()) -> TrainedRoute:
    known = tuple(accuracies) or tuple(np.linspace(0.5, 0.9, len(epochs)))
    return TrainedRoute(epochs=tuple(epochs), decays=tuple(decays), accuracies=known)


def level(row: Sequence[float], accuracy: float = 0.0, anchors: Sequence[float] = ()) -> StudentLevel:
    """A student: how hard the checkpoints are for it, its accuracy, and theirs."""
    return StudentLevel(np.array(row, dtype=float), accuracy, np.array(anchors if len(anchors) else np.ones(len(row))))


def walk(strategy: Strategy, route: TrainedRoute, students: Sequence[StudentLevel]) -> list[Choice]:
    """Follow a strategy to its end; students[i] is the student after stage i (0: the initial one)."""
    chosen: list[Choice] = []
    while True:
        student = students[min(len(chosen), len(students) - 1)]
        choice = next_anchor(strategy, route, chosen=[c.anchors for c in chosen], student=student)
        if choice is None:
            return chosen
        chosen.append(choice)


def epochs_of(chosen: Sequence[Choice]) -> list[int]:
    """The epochs of stages with one anchor each."""
    return [epoch for (epoch,) in (c.anchor_epochs for c in chosen)]


def lengths(strategy: Strategy, route: TrainedRoute, chosen: Sequence[Choice], total: int) -> list[int]:
    """Epochs of the stages."""
    made: list[int] = []
    for c in chosen:
        stages = strategy.most_stages(route)
        made.append(stage_epochs(total, stages, done=sum(made), remaining=c.remaining, last=c.last))
    return made


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
        with pytest.raises(InputError, match="learning rate was decayed, and this one"):
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
            AnchorConfig.of(strategy="explicit", anchor_epochs=(10, 5))


class TestGreedy:
    search = Greedy(n_anchors=10, delta=1.5)

    def test_known_answer_on_a_hand_made_route(self) -> None:
        epochs = (10, 20, 30, 40, 50)
        rows = [
            [9, 9, 9, 9, 9],  # the initial student decides nothing: the first anchor is the first checkpoint
            [1.0, 1.2, 1.5, 1.6, 9],  # after anchor 0: up to r = 1.5 -> index 2
            [9, 9, 2.0, 3.2, 3.0],  # after anchor 2: r = 1.6 > 1.5 at once -> index 3
            [9, 9, 9, 1.0, 1.4],  # after anchor 3: the end
        ]
        chosen = walk(self.search, trained(epochs), [level(row) for row in rows])
        assert epochs_of(chosen) == [10, 30, 40, 50]
        assert [c.last for c in chosen] == [False, False, False, True]
        assert "r = 1.50 <= 1.5; epoch 40 has r = 1.60" in chosen[1].reason
        assert "r = 1.60 > 1.5" in chosen[2].reason

    def test_a_dip_beyond_a_hard_checkpoint_is_not_leapt_to(self) -> None:
        choice = next_anchor(self.search, trained((1, 2, 3, 4, 5)), chosen=[(0,)], student=level([1, 1.2, 9, 1.0, 9.0]))
        assert choice is not None
        assert choice.anchors == (1,)

    def test_first_epoch(self) -> None:
        choice = next_anchor(Greedy(first_epoch=20), trained((10, 20, 30)), student=level([1, 1, 1]))
        assert choice is not None
        assert choice.anchor_epochs == (20,)
        with pytest.raises(InputError, match=r"first_epoch = 25.*10, 20, 30"):
            Greedy(first_epoch=25).most_stages(Schedule(epochs=(10, 20, 30)))

    def test_single_checkpoint_is_plain_distillation(self) -> None:
        chosen = walk(self.search, trained((200,)), [level([1.0])])
        assert [(c.anchor_epochs, c.last) for c in chosen] == [((200,), True)]

    def test_maximum_of_stages_ends_at_the_teacher(self) -> None:
        chosen = walk(Greedy(n_anchors=3, delta=1.0), trained(range(1, 21)), [level([1.0, *[9.0] * 19])])
        assert epochs_of(chosen) == [1, 2, 20]

    def test_floor_keeps_a_perfect_student_moving(self) -> None:
        assert relative(np.array([0.0, FLOOR]), 0)[1] == pytest.approx(1.0)

    @given(routes, st.data())
    def test_advances_ends_at_the_teacher_and_never_exceeds_the_maximum(
        self, epochs: tuple[int, ...], data: st.DataObject
    ) -> None:
        search = Greedy(
            n_anchors=data.draw(st.integers(1, 12)),
            delta=data.draw(st.floats(0.01, 100)),
            first_epoch=data.draw(st.sampled_from((0, *epochs))),
        )
        row = st.lists(st.floats(0, 50), min_size=len(epochs), max_size=len(epochs))
        chosen = walk(search, trained(epochs), [level(data.draw(row)) for _ in range(min(search.n_anchors, 4))])
        indices = [i for c in chosen for i in c.anchors]
        assert indices == sorted(set(indices)), "the route always advances"
        assert chosen[-1].anchors == (len(epochs) - 1,), "it ends at the converged teacher"
        assert [c.last for c in chosen] == [*[False] * (len(chosen) - 1), True]
        assert 1 <= len(chosen) <= min(search.n_anchors, len(epochs)), "the maximum is never exceeded"
        assert [c.stage for c in chosen] == list(range(1, len(chosen) + 1))


class TestAccuracyInterval:
    def test_known_answers(self) -> None:
        assert accuracy_interval([0.1, 0.4, 0.5, 0.6, 0.62, 0.64, 0.7], 3) == (0, 1, 6)
        assert accuracy_interval([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 4) == (0, 2, 4, 6)
        assert accuracy_interval([0.5, 0.9, 0.9, 0.9], 1) == (3,)

    def test_a_leap_leaves_room_for_the_anchors_that_follow(self) -> None:
        assert accuracy_interval([0.1, 0.1, 0.1, 0.9], 4) == (0, 1, 2, 3)
        assert accuracy_interval([0.1, 0.9, 0.9, 0.9, 0.9], 3) == (0, 1, 4)

    def test_a_route_that_gets_worse(self) -> None:
        assert accuracy_interval([0.9, 0.5, 0.4, 0.3], 3) == (0, 2, 3)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.data())
    def test_always_n_increasing_anchors_ending_at_the_teacher(self, accuracies: list[float], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(accuracies)))
        chosen = accuracy_interval(accuracies, n)
        assert len(chosen) == n
        assert list(chosen) == sorted(set(chosen))
        assert chosen[-1] == len(accuracies) - 1

    @given(st.integers(2, 30), st.integers(2, 8), st.floats(0, 0.4), st.floats(0.5, 1))
    def test_a_straight_rise_is_an_equal_interval(self, steps: int, n: int, low: float, high: float) -> None:
        accuracies = [low + (high - low) * i / (steps * (n - 1)) for i in range(steps * (n - 1) + 1)]
        chosen = accuracy_interval(accuracies, n)
        assert all(abs(i - k * steps) <= 1 for k, i in enumerate(chosen)), "a checkpoint is at most one off, by rounding"

    def test_more_anchors_than_checkpoints_are_refused_before_the_teacher_is_trained(self) -> None:
        with pytest.raises(InputError, match=r"n_anchors = 4.*3 checkpoints"):
            AccuracyInterval(n_anchors=4).most_stages(Schedule(epochs=(1, 2, 3)))


class TestWorthy:
    route = trained((10, 20, 30, 40))
    anchors = (0.3, 0.5, 0.7, 0.9)

    def students(self, *accuracies: float) -> list[StudentLevel]:
        return [level([1.0] * 4, accuracy, self.anchors) for accuracy in accuracies]

    def test_a_student_that_is_never_better_walks_the_equal_interval(self) -> None:
        chosen = walk(Worthy(n_anchors=4), self.route, self.students(0.1, 0.3, 0.5, 0.7))
        assert epochs_of(chosen) == [10, 20, 30, 40]
        assert lengths(Worthy(n_anchors=4), self.route, chosen, 11) == list(planned_lengths(11, 4)) == [2, 2, 2, 5]

    def test_weaker_anchors_are_skipped_and_later_stages_share_their_epochs(self) -> None:
        chosen = walk(Worthy(n_anchors=4), self.route, self.students(0.1, 0.6))
        assert epochs_of(chosen) == [10, 30, 40]
        assert chosen[1].reason == "anchor 3 of 4; epoch 20 skipped: the student, at 60.0% of the probe set, is better"
        assert lengths(Worthy(n_anchors=4), self.route, chosen, 80) == [20, 30, 30]

    def test_an_anchor_as_good_as_the_student_is_worthy(self) -> None:
        assert epochs_of(walk(Worthy(n_anchors=4), self.route, self.students(0.5))) == [20, 30, 40]

    def test_the_converged_teacher_is_never_skipped(self) -> None:
        chosen = walk(Worthy(n_anchors=4), self.route, self.students(0.95))
        assert [(c.anchor_epochs, c.last) for c in chosen] == [((40,), True)]
        assert lengths(Worthy(n_anchors=4), self.route, chosen, 80) == [80]

    @given(routes, st.data())
    def test_no_anchor_is_weaker_than_its_student_but_the_last(self, epochs: tuple[int, ...], data: st.DataObject) -> None:
        strategy = Worthy(n_anchors=data.draw(st.integers(1, len(epochs))))
        anchors = data.draw(st.lists(st.floats(0, 1), min_size=len(epochs), max_size=len(epochs)))
        accuracies = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=5))
        chosen = walk(strategy, trained(epochs), [level([1.0] * len(epochs), a, anchors) for a in accuracies])
        for i, c in enumerate(chosen[:-1]):
            assert anchors[c.anchors[0]] >= accuracies[min(i, len(accuracies) - 1)]
        assert set(epochs_of(chosen)) <= set(equal_interval(epochs, strategy.n_anchors))


class TestCheckpointEnsemble:
    route = Schedule(epochs=(4, 8, 12, 16, 20, 24, 28, 32, 36, 40), decays=(20, 30))

    def test_members_lie_before_the_first_decay(self) -> None:
        ((epochs, reason),) = CheckpointEnsemble(members=3).plan(self.route)
        assert epochs == (4, 12, 20)
        assert reason == "the mean of 3 checkpoints up to epoch 20"

    def test_members_lie_between_two_epochs(self) -> None:
        assert CheckpointEnsemble(members=3, members_from=8, members_to=33).plan(self.route)[0][0] == (8, 20, 32)
        assert CheckpointEnsemble(members=2, members_to=40).plan(self.route)[0][0] == (4, 40)

    def test_one_member_is_the_last(self) -> None:
        assert CheckpointEnsemble(members=1, members_to=40).plan(self.route)[0][0] == (40,)

    def test_one_stage_with_all_epochs(self) -> None:
        strategy, route = CheckpointEnsemble(members=3), trained(self.route.epochs, decays=self.route.decays)
        chosen = walk(strategy, route, [level([1.0] * 10)])
        assert [(c.anchors, c.remaining, c.last) for c in chosen] == [((0, 2, 4), 1, True)]
        assert lengths(strategy, route, chosen, 77) == [77]

    @pytest.mark.parametrize(
        ("settings", "decays", "words"),
        [
            ({"members": 6}, (20,), r"members = 6: is more than the 5 checkpoints from epoch 4 to 20"),
            ({"members_from": 21}, (20,), r"members_from = 21: lies beyond the learning rate's first decay \(epoch 20\)"),
            ({}, (), r"members_to = 0: means the first decay.*never decayed.*such as 20"),
            ({"members_to": 41}, (20,), r"members_to = 41: is beyond the route, which ends at epoch 40"),
        ],
    )
    def test_refused(self, settings: dict[str, int], decays: tuple[int, ...], words: str) -> None:
        with pytest.raises(InputError, match=words):
            CheckpointEnsemble(**settings).most_stages(Schedule(epochs=self.route.epochs, decays=decays))

    def test_refused_before_a_route_is_known(self) -> None:
        with pytest.raises(InputError, match="members = 0"):
            CheckpointEnsemble(members=0)
        with pytest.raises(InputError, match=r"members_to = 5: is before members_from = 9"):
            CheckpointEnsemble(members_from=9, members_to=5)

    @given(routes, st.data())
    def test_members_are_of_the_route_and_its_ends_among_them(self, epochs: tuple[int, ...], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(epochs)))
        chosen = spread(epochs, n)
        assert len(chosen) == n
        assert list(chosen) == sorted(set(chosen))
        assert set(chosen) <= set(epochs)
        assert chosen[-1] == epochs[-1]
        assert n == 1 or chosen[0] == epochs[0]


class TestEveryStrategy:
    """What holds for all that are registered, also for one that was registered a minute ago."""

    @staticmethod
    def made(name: str, route: TrainedRoute, n: int) -> Strategy:
        ends = tuple(sorted({route.epochs[0], route.epochs[-1]}))
        own = {"n_anchors": n, "anchor_epochs": ends, "members": n, "members_to": ends[-1]}
        known = STRATEGIES[name].__dataclass_fields__
        return STRATEGIES[name](**{parameter: value for parameter, value in own.items() if parameter in known})

    @pytest.mark.parametrize("name", STRATEGIES.names)
    @given(epochs=routes, data=st.data())
    def test_it_walks_up_the_route_to_the_teacher_in_the_stages_it_promised(
        self, name: str, epochs: tuple[int, ...], data: st.DataObject
    ) -> None:
        numbers = st.lists(st.floats(0, 1), min_size=len(epochs), max_size=len(epochs))
        decays = data.draw(st.sets(st.integers(epochs[0], epochs[-1]), min_size=1).map(sorted))
        route = trained(epochs, data.draw(numbers), decays)
        strategy = self.made(name, route, data.draw(st.integers(1, len(epochs))))
        rows, anchors = data.draw(st.lists(numbers, min_size=1, max_size=3)), data.draw(numbers)
        chosen = walk(strategy, route, [level(row, data.draw(st.floats(0, 1)), anchors) for row in rows])
        indices = [i for c in chosen for i in c.anchors]
        assert indices == sorted(set(indices)), "the route always advances"
        assert not strategy.ends_at_teacher or indices[-1] == len(epochs) - 1, "it ends at the converged teacher"
        assert [c.stage for c in chosen] == list(range(1, len(chosen) + 1))
        assert len(chosen) <= strategy.most_stages(Schedule(epochs=route.epochs, decays=route.decays))
        assert all(c.reason for c in chosen)
        total = strategy.most_stages(route) + data.draw(st.integers(0, 400))
        given = lengths(strategy, route, chosen, total)
        assert sum(given) == total
        assert min(given) >= 1

    @pytest.mark.parametrize("name", STRATEGIES.names)
    def test_it_is_described_and_has_a_branch(self, name: str) -> None:
        from rco.config.kinds import DESCRIBED, KINDS

        assert STRATEGIES[name].summary == DESCRIBED[name]
        assert KINDS[name] == {"strategy": name}

    def test_a_plan_that_stops_short_of_the_teacher_is_refused_beforehand(self) -> None:
        class Short(Planned):
            plugin_name = "short"

            def plan(self, route: Schedule) -> list[tuple[int, str]]:
                return [(route.epochs[0], "the first")]

        with pytest.raises(InputError, match=r"strategy = 'short': does not end at the converged teacher \(epoch 9\)"):
            Short().most_stages(Schedule(epochs=(3, 9)))


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
