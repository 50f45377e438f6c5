"""The command line: frozen, explained, and light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.cli.recipes import RECIPES, merged_comparison, merged_parameters, read_recipe
from pipelines.local.run import _for_people
from rco.config.parameters import PARAMETERS, RunConfig
from rco.core.errors import InputError, UnusedError
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from tests.in_process import settings_of, stages_needed


def test_help_lists_every_parameter_with_its_default() -> None:
    wide = {"terminal_width": 1000, "max_content_width": 1000}
    text = " ".join(CliRunner().invoke(main, ["run", "--help"], **wide).output.split())
    for p in PARAMETERS.values():
        assert f"--{p.name.replace('_', '-')}" in text
        shown = ",".join(map(str, p.default)) if isinstance(p.default, list) else str(p.default)
        assert f"{p.help} [{shown}]" in text, p.name


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_valid(path: Path) -> None:
    assert stages_needed(read_recipe(path.stem)) == (2 if path.stem == "cifar10" else 4)


def test_the_digits_recipe_is_what_make_run_does() -> None:
    assert RunConfig.from_flat(read_recipe("digits")) == RunConfig()


def test_what_means_nothing_in_a_recipe_is_left_out_and_said_but_not_in_a_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: greedy\ndelta: 2.0\nn_anchors: 3\nobjective: dkd\ndkd_beta: 2.0\n")
    assert merged_parameters(str(file), {"tau": 2.0})["delta"] == 2.0
    assert capsys.readouterr().err == ""
    assert "delta" not in merged_parameters(str(file), {"strategy": "equal-interval"})
    assert capsys.readouterr().err == (
        f"delta of the recipe {file} is left out: it means nothing with strategy = equal-interval\n"
    )
    merged = merged_comparison(str(file), {"branches": "kd,lr-decay"})
    assert merged == {"branches": "kd,lr-decay", "objective": "dkd", "dkd_beta": 2.0}
    assert capsys.readouterr().err.count("means nothing with branches = kd, lr-decay") == 2
    for merge, given in (
        (merged_parameters, {"strategy": "lr-decay", "delta": 3.0}),
        (merged_comparison, {"branches": "kd,lr-decay", "delta": 3.0}),
    ):
        with pytest.raises(UnusedError, match=r"delta = 3.0: means nothing with "):
            merge(str(file), given)


def test_a_recipes_teacher_is_not_trained_where_there_is_a_route(capsys: pytest.CaptureFixture[str]) -> None:
    # The recipe's other values of the training are the defaults.
    left_out = ["teacher_epochs", "teacher_milestones", "teacher_augment", "checkpoint_every"]
    for merge in (merged_parameters, merged_comparison):
        merged = merge("cifar10", {"route": "r"})
        assert [name for name in read_recipe("cifar10") if name not in {*merged, "strategy"}] == left_out
        assert capsys.readouterr().err.splitlines() == [
            f"{name} of the recipe cifar10 is left out: it means nothing beside route, whose teacher is trained"
            for name in left_out
        ]
    with pytest.raises(UnusedError, match=r"teacher_lr = 0.2: means nothing beside route"):
        merged_parameters("cifar10", {"route": "r", "teacher_lr": 0.2})


@pytest.mark.parametrize(
    "command", ["run", "compare", "sweep --tau 2,4", "submit --dry-run", "submit --dry-run --pipeline comparison"]
)
def test_no_command_trains_a_teacher_beside_a_route(command: str) -> None:
    done = CliRunner().invoke(main, [*command.split(), "--route", "nowhere", "--teacher-epochs", "5"])
    assert done.exit_code == 2
    assert (
        "teacher_epochs = 5: means nothing beside route, whose teacher is trained. Leave it out, or leave out route"
        in done.output
    )


def test_recipes_of_ones_own_and_flags_that_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("tau: 2\nepochs: 12\n")
    assert read_recipe(str(file)) == {"tau": 2, "epochs": 12}
    with pytest.raises(InputError, match=r"Recipes: cifar10, .*digits"):
        read_recipe("nothere")
    for content, words in (
        ("- a\n", "not a mapping"),
        ("a: [\n", "not YAML"),
        ("temperature: 3\n", "'temperature': is not known"),
    ):
        file.write_text(content)
        done = CliRunner().invoke(main, ["run", "--recipe", str(file)])
        assert done.exit_code == 2
        assert words in done.output


def test_commands_start_light() -> None:
    code = (
        "import sys; import pipelines.cli.main;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'mlflow', 'kfp', 'boto3', 'matplotlib', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("    rco | stage 1: anchor epoch 4\n", "  stage 1: anchor epoch 4"),
        ("21:22:09.227 - INFO - Executing task \x1b[96m'distill-students'\x1b[0m\n", "distill-students"),
        ("Task train-teacher cache hit (key=abc); skipping execution.\n", "train-teacher: unchanged, taken from the cache"),
        ("    [KFP Executor 2026-11-23 INFO]: Got executor_input:\n", None),
    ],
)
def test_what_people_see_of_the_log(line: str, shown: str | None) -> None:
    assert _for_people(line) == shown


def test_import_route_from_state_dicts(tmp_path: Path) -> None:
    spec = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
    for epoch in (5, 10):
        torch.save(spec.build(epoch).state_dict(), tmp_path / f"{epoch}.pt")
    command = [
        "import-route",
        str(tmp_path / "5.pt"),
        str(tmp_path / "10.pt"),
        "--dataset",
        "digits",
        "--teacher",
        "digits-mlp",
    ]
    done = CliRunner().invoke(main, [*command, "--epochs", "5,10", "--output", str(tmp_path / "route")])
    assert done.exit_code == 0, done.output
    route = Route.open(tmp_path / "route")
    route.verify()
    assert route.epochs == (5, 10)
    for epochs, words in (("5", "names 1 epochs for 2"), ("10,5", "must increase"), ("5,x", "not a list of whole numbers")):
        done = CliRunner().invoke(main, [*command, "--epochs", epochs, "--output", str(tmp_path / f"r{epochs}")])
        assert done.exit_code == 2
        assert words in done.output
    done = CliRunner().invoke(main, [*command, "--epochs", "5,10", "--output", str(tmp_path / "route")])
    assert "is not empty" in done.output


def test_import_route_of_a_teacher_that_has_not_seen_all_classes(tmp_path: Path) -> None:
    spec = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=7, image_size=8, embedding_dim=6)
    torch.save(spec.build(0).state_dict(), tmp_path / "5.pt")
    command = ["import-route", str(tmp_path / "5.pt"), "--epochs", "5", "--dataset", "digits", "--teacher", "digits-mlp"]
    told = ["--teacher-embedding-dim", "6", "--open-classes", "7,8,9"]
    done = CliRunner().invoke(main, [*command, *told, "--output", str(tmp_path / "route")])
    assert done.exit_code == 0, done.output
    assert Route.open(tmp_path / "route").network == spec
    # A run with that route has to say the same of the teacher.
    flat = {"route": str(tmp_path / "route"), "teacher": "digits-mlp", "n_anchors": 1, "open_classes": [7, 8, 9]}
    settings_of({**flat, "teacher_embedding_dim": 6, "student_embedding_dim": 6})
    with pytest.raises(InputError, match="teacher_embedding_dim = 8: is not what the route's teacher was trained as"):
        settings_of({**flat, "teacher_embedding_dim": 8, "student_embedding_dim": 8})
    with pytest.raises(InputError, match="7 classes"):
        settings_of({**flat, "open_classes": [8, 9], "teacher_embedding_dim": 6, "student_embedding_dim": 6})
