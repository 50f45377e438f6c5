"""Every setting is valid or refused by name, and nothing is lost on the way through flat names."""

import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.config.parameters import PARAMETERS, RunConfig
from rco.core.errors import InputError, UnusedError
from rco.core.settings import from_dict, jsonable
from rco.objectives.config import ObjectiveConfig
from rco.training.config import TrainConfig
from rco.training.schedule import checkpoint_epochs, learning_rate
from tests.in_process import stages_needed


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tau", 0, "above 0"),
        ("tau", -1, "above 0"),
        ("tau", float("nan"), "finite"),
        ("lam", "-0.5", "lambda must be"),
        ("lam", "much", "not a number"),
        ("lam", "inf", "finite"),
        ("delta", 0, "above 0"),
        ("epochs", 0, "1 or more"),
        ("teacher_epochs", 0, "1 or more"),
        ("epochs", 2.5, "not int"),
        ("batch_size", 0, "1 or more"),
        ("lr", 0, "above 0"),
        ("teacher_lr", "fast", "not float"),
        ("momentum", 1, "below 1"),
        ("optimizer", "sdg", "Did you mean 'sgd'"),
        ("strategy", "greeedy", "Did you mean 'greedy'"),
        ("schedule", "linear", "constant, cosine, multistep"),
        ("augment", "mixup", "Choose one of"),
        ("n_anchors", 0, "1 or more"),
        ("checkpoint_every", 0, "1 or more"),
        ("val_fraction", 1.0, "between 0 and 1"),
        ("warmup_epochs", 80, "below the 80 epochs"),
        ("milestones", "20,10", "must increase"),
        ("milestones", "20,80", "below the 80 epochs"),
        ("milestones", "0.5,20", "mixes"),
        ("milestones", "", "is empty"),
        ("milestones", "-1,5", "above 0"),
        ("milestones", "1.5,3", "not whole"),
        ("download", "maybe", "true or false"),
        ("anchor_epochs", "a,b", "list of int"),
        ("registered_model", "a/b", "holds"),
        ("student", " ", "is empty"),
        ("teachr", "x", "Did you mean 'teacher'"),
    ],
)
def test_bad_values_name_parameter_value_and_remedy(name: str, value: object, words: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.from_flat({name: value})
    message = str(caught.value)
    assert words in message
    assert message.startswith((f"{name} = ", "parameter = 'teachr'"))
    assert len(message.splitlines()) == 1


def test_lr_decay_needs_a_schedule_with_decays() -> None:
    asked = {"strategy": "lr-decay", "teacher_schedule": "cosine"}
    with pytest.raises(InputError, match="Use teacher_schedule = multistep"):
        stages_needed(asked)


def test_a_parameter_of_another_plug_in_is_refused() -> None:
    with pytest.raises(UnusedError, match=r"delta = 2.0: means nothing with strategy = lr-decay.*or set strategy = greedy$"):
        RunConfig.from_flat({"strategy": "lr-decay", "delta": 2})
    with pytest.raises(
        UnusedError, match=r"teacher_gamma = 0.5: means nothing with teacher_schedule = cosine.*teacher_schedule = multistep$"
    ):
        RunConfig.from_flat({"teacher_schedule": "cosine", "teacher_gamma": 0.5})
    assert RunConfig.from_flat({"strategy": "lr-decay", "delta": 1.5}), "a form gives every parameter, with its default"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher_epochs", "41"),
        ("teacher_milestones", [0.5]),
        ("teacher_milestones", "90"),  # which is beyond a training that nobody asked for
        ("teacher_optimizer", "adamw"),
        ("teacher_momentum", 0.5),
        ("teacher_augment", "none"),
        ("teacher_seed", 1),
        ("checkpoint_every", 2),
    ],
)
def test_the_training_of_a_teacher_that_is_there_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UnusedError, match=r"means nothing beside route, whose teacher is trained.*leave out route$") as caught:
        RunConfig.from_flat({"route": "s3://key:secret@bucket/route", name: value})
    assert caught.value.parameter == name
    assert "secret" not in str(caught.value)
    RunConfig.from_flat({"route": "r", name: PARAMETERS[name].default})
    RunConfig.from_flat(
        {"route": "r", "teacher": "resnet8", "teacher_stem": "small", "epochs": 41, "milestones": "0.5", "seed": 1}
    )


def test_what_concerns_an_anchor_is_refused_where_none_is_asked() -> None:
    with pytest.raises(UnusedError, match=r"views = 4: means nothing with lam = 0: no anchor is asked. Leave it out"):
        RunConfig.from_flat({"lam": "0", "views": 4})
    with pytest.raises(UnusedError, match=r"dkd_beta = 2.0: means nothing with lam = 0.0"):
        RunConfig.from_flat({"lam": "0.0", "objective": "dkd", "dkd_beta": 2})
    hint = {"objective": "hint", "student_tap": "2", "teacher_tap": "2"}
    assert RunConfig.from_flat({"lam": "0", **hint, "hint_weight": 3}).objective.needs_anchor


def test_a_champions_margin_where_none_is_registered_is_refused() -> None:
    with pytest.raises(UnusedError, match=r"champion_margin = 0.1: means nothing where no student is registered"):
        RunConfig.from_flat({"registered_model": "", "champion_margin": 0.1})
    RunConfig.from_flat({"registered_model": "", "champion_margin": 0})
    RunConfig.from_flat({"champion_margin": 0.1})


def test_flat_round_trip_and_strings() -> None:
    flat = RunConfig().to_flat()
    assert list(flat) == list(PARAMETERS)
    assert RunConfig.from_flat(flat) == RunConfig()
    as_text = {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in flat.items()}
    assert RunConfig.from_flat(as_text) == RunConfig()
    assert RunConfig.from_flat(json.loads(json.dumps(flat))) == RunConfig()


def test_teacher_and_student_do_not_share_names() -> None:
    config = RunConfig.from_flat({"teacher_lr": 0.3, "lr": 0.2, "teacher": "a", "student": "b", "student_stem": "small"})
    assert (config.teacher_train.lr, config.student_train.lr) == (0.3, 0.2)
    assert (config.teacher.model, config.student.model, config.student.stem) == ("a", "b", "small")
    assert config.teacher.stem == "auto"


def test_every_parameter_is_explained() -> None:
    assert all(p.help for p in PARAMETERS.values())


def test_settings_survive_kubeflow_which_knows_no_integers() -> None:
    config = TrainConfig.of(epochs=7, milestones=(2, 4), seed=3)

    def floats(value: object) -> object:
        if isinstance(value, dict):
            return {k: floats(v) for k, v in value.items()}
        if isinstance(value, list):
            return [floats(v) for v in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    back = from_dict(TrainConfig, floats(jsonable(config)))
    assert back == config
    assert isinstance(back.epochs, int)
    with pytest.raises(InputError, match="not a field"):
        from_dict(TrainConfig, {"epoch": 3})


def test_the_check_component_takes_exactly_the_parameters() -> None:
    from components.check import check
    from rco.config.shape import Shape

    taken = inspect.signature(check(Shape.of_run()).python_func).parameters
    assert list(taken) == ["compiled", "plugins", *PARAMETERS]
    assert {name: p.annotation for name, p in taken.items()} == {"compiled": dict, "plugins": dict} | {
        p.name: p.kind for p in PARAMETERS.values()
    }


class TestSchedule:
    def rate(self, config: TrainConfig, epoch: float, epochs: int | None = None) -> float:
        return learning_rate(config, round(epoch * 10), steps_per_epoch=10, epochs=epochs or config.epochs)

    def test_multistep_drops_after_its_epochs(self) -> None:
        config = TrainConfig.of(epochs=40, lr=1.0, milestones=(20, 30), gamma=0.1)
        assert [self.rate(config, e) for e in (0, 19.9, 20, 29.9, 30, 39.9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    def test_fractions_follow_the_length_of_a_stage(self) -> None:
        config = TrainConfig.of(epochs=80, lr=1.0, milestones=(0.5, 0.75))
        assert config.decay_epochs(80) == (40, 60)
        assert config.decay_epochs(20) == (10, 15)
        assert config.decay_epochs(1) == ()
        assert config.decay_epochs(2) == (1,)

    def test_cosine_goes_from_peak_to_nothing(self) -> None:
        config = TrainConfig.of(epochs=10, lr=2.0, schedule="cosine")
        assert self.rate(config, 0) == pytest.approx(2.0)
        assert self.rate(config, 5) == pytest.approx(1.0)
        assert self.rate(config, 9.9) < 0.01

    def test_warm_up_is_linear_and_moves_from_the_first_step(self) -> None:
        config = TrainConfig.of(epochs=10, lr=1.0, schedule="constant", warmup_epochs=2)
        assert [self.rate(config, e) for e in (0, 0.9, 1.9, 2, 9)] == pytest.approx([0.05, 0.5, 1, 1, 1])

    def test_checkpoint_epochs_hold_intervals_decays_and_the_end(self) -> None:
        config = TrainConfig.of(epochs=25, milestones=(13, 20))
        assert checkpoint_epochs(config, 10) == (10, 13, 20, 25)
        assert checkpoint_epochs(TrainConfig.of(epochs=3, schedule="constant"), 10) == (3,)

    @given(st.integers(1, 60), st.sampled_from(["multistep", "cosine", "constant"]), st.floats(0, 5))
    def test_rates_are_positive_and_below_the_peak(self, epochs: int, schedule: str, warmup: float) -> None:
        config = TrainConfig.of(epochs=epochs, lr=0.1, schedule=schedule, warmup_epochs=min(warmup, epochs / 2))
        rates = [learning_rate(config, s, steps_per_epoch=3, epochs=epochs) for s in range(3 * epochs)]
        assert all(0 < r <= 0.1 + 1e-12 for r in rates)


def test_lambda_spellings() -> None:
    assert ObjectiveConfig(tau=3, lam="tau**2").lambda_ == 9
    assert ObjectiveConfig(tau=3, lam="0").lambda_ == 0
