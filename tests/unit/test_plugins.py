"""Registries: what is registered, refused and found, and the flat settings that follow from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rco.config.plugins import failures, require
from rco.core.errors import InputError, UnusedError
from rco.core.plugins import Plugin, Registry, Settings, plugin_setting
from rco.core.settings import from_dict, jsonable, setting
from rco.models.families import packages
from tests.in_process import changed, settings_of


class Colour(Plugin):
    """A kind of plug-in."""


class Colours(Registry[Colour]):
    """A registry whose package has no modules."""

    def __init__(self) -> None:
        super().__init__("colour", Colour, package="tests.fuzz", helpers=("__main__", "harness", "readers"))
        self.group = "tests.colours"


@pytest.fixture
def colours() -> Colours:
    registry = Colours()

    @registry.register("red")
    @dataclass(frozen=True, kw_only=True)
    class Red(Colour):
        summary: ClassVar[str] = "warm"

        depth: int = setting(1, "how deep")
        words: tuple[str, ...] = setting((), "what it says")

    @registry.register("blue")
    @dataclass(frozen=True, kw_only=True)
    class Blue(Colour):
        summary: ClassVar[str] = "cold"

        depth: int = setting(1, "how far down")
        chill: float = setting(0.5, "how cold")

        def __post_init__(self) -> None:
            if self.chill < 0:
                raise InputError("chill", self.chill, "is below 0", "Give 0 or more")

    return registry


def paint(registry: Colours) -> Any:
    @dataclass(frozen=True, kw_only=True)
    class Paint(Settings):
        coats: int = setting(2, "how many")
        colour: Colour = plugin_setting(registry, "red", "which one")

    return Paint


class TestRegistering:
    def test_names_owners_and_help(self, colours: Colours) -> None:
        assert colours.names == ("blue", "red")
        assert list(colours.parameters) == ["depth", "chill", "words"]
        assert colours.owners("depth") == ("blue", "red")
        assert colours.help("depth") == "blue: how far down; red: how deep"
        assert colours["blue"].plugin_name == "blue"
        assert colours.origin("blue") is None

    def test_at_any_time(self, colours: Colours) -> None:
        assert colours.names == ("blue", "red")

        @colours.register("green")
        @dataclass(frozen=True, kw_only=True)
        class Green(Colour):
            summary: ClassVar[str] = "between"

        assert colours.names == ("blue", "green", "red")
        assert jsonable(paint(colours).of(colour="green")) == {"coats": 2, "colour": "green"}

    def test_an_unknown_name(self, colours: Colours) -> None:
        with pytest.raises(InputError, match=r"colour = 'rde': is not known. Did you mean 'red'\? Choose one of: blue, red"):
            colours["rde"]

    def test_what_cannot_be_registered(self, colours: Colours) -> None:
        @dataclass
        class Soft(Colour):
            depth: int = setting(1, "x")

        @dataclass(frozen=True)
        class Mute(Colour):
            depth: int = 1

        @dataclass(frozen=True)
        class Other(Colour):
            summary: ClassVar[str] = "x"

            depth: float = setting(1.0, "x")

        @dataclass(frozen=True)
        class NotOne:
            depth: int = setting(1, "x")

        for cls, words in (
            (Soft, "frozen"),
            (Mute, "setting"),
            (Other, "another type or default"),
            (NotOne, "must be a dataclass"),
        ):
            with pytest.raises(TypeError, match=words):
                colours.register("green")(cls)  # type: ignore[type-var]
        assert colours.names == ("blue", "red")


class TestSettings:
    def test_flat_values_in_and_out(self, colours: Colours) -> None:
        made = paint(colours).of(colour="blue", chill=0.1, coats=3)
        assert jsonable(made) == {"coats": 3, "colour": "blue", "depth": 1, "chill": 0.1}
        assert from_dict(type(made), jsonable(made)) == made
        assert made.with_values(depth=4).colour == colours["blue"](depth=4, chill=0.1)
        assert made.with_values(colour="red").colour == colours["red"](), "another plug-in begins with its defaults"

    def test_what_reaches_nothing_is_refused_but_for_its_default(self, colours: Colours) -> None:
        with pytest.raises(UnusedError, match=r"chill = 0.1: means nothing with colour = red.*set colour = blue$"):
            paint(colours).of(chill=0.1)
        assert paint(colours).of(chill=0.5, depth=2).colour == colours["red"](depth=2)

    def test_what_cannot_work(self, colours: Colours) -> None:
        with pytest.raises(InputError, match=r"chill = -1: is below 0"):
            paint(colours).of(colour="blue", chill=-1)
        with pytest.raises(TypeError, match="has no shade"):
            paint(colours).of(shade=1)
        with pytest.raises(InputError, match="shade = 1: is not a field"):
            from_dict(paint(colours), {"colour": "red", "shade": 1})
        with pytest.raises(InputError, match="colour = 'x': is not known"):
            from_dict(paint(colours), {"colour": "x"})


GREEN = """
from dataclasses import dataclass
from tests.unit.test_plugins import CURRENT
from rco.core.plugins import Plugin
from rco.core.settings import setting

@CURRENT[0].register("green")
@dataclass(frozen=True, kw_only=True)
class Green(CURRENT[0].base):
    summary = "between"

    depth: int = setting(1, "how green")
"""
CURRENT: list[Colours] = []


class TestOtherPackages:
    @pytest.fixture
    def install(self, colours: Colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Installs a package of one module with an entry point, as pip lays it out."""
        CURRENT[:] = [colours]
        monkeypatch.syspath_prepend(str(tmp_path))

        def install(text: str, name: str = "green", version: str = "1.2") -> None:
            (tmp_path / "greens.py").write_text(text)
            folder = tmp_path / f"greens-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: greens\nVersion: {version}\n")
            (folder / "entry_points.txt").write_text(f"[tests.colours]\n{name} = greens\n")

        yield install
        sys.modules.pop("greens", None)

    def test_their_plug_ins_are_like_ours(self, colours: Colours, install: Any, tmp_path: Path) -> None:
        install(GREEN)
        assert colours.names == ("blue", "green", "red")
        assert colours.help("depth") == "blue: how far down; green: how green; red: how deep"
        origin = colours.origin("green")
        assert origin is not None
        assert (origin.package, origin.version, len(origin.digest)) == ("greens", "1.2", 64)
        (tmp_path / "greens.py").write_text(GREEN + "\n")
        assert colours.origin("green") != origin, "an edit is another plug-in"

    @pytest.mark.parametrize(
        ("text", "name", "words"),
        [
            ("import no_such_module", "green", "greens: ModuleNotFoundError"),
            ("", "green", "registers no colour of that name"),
            (GREEN, "emerald", "registers no colour of that name"),
            (GREEN.replace("depth: int = setting(1", "depth: int = setting(2"), "green", "another type or default"),
            (GREEN.replace('register("green")', 'register("red")'), "red", "is taken"),
            ("raise SystemError('no\\nway')", "green", "SystemError"),
        ],
    )
    def test_one_that_cannot_be_used_takes_nothing_down(
        self, colours: Colours, install: Any, text: str, name: str, words: str
    ) -> None:
        install(text, name)
        assert words in colours.failures[name], "whether or not the registry was looked at before"
        assert {"blue", "red"} <= set(colours.names)
        if name != "red":
            with pytest.raises(InputError, match=rf"colour = '{name}': cannot be used \(greens"):
                colours[name]

    def test_the_settings_of_a_run_know_them(self, tmp_path: Path) -> None:
        """In a process of its own, which finds them as the command line does."""
        text = GREEN.replace(
            "from tests.unit.test_plugins import CURRENT\n", "from rco.strategies.base import STRATEGIES, Planned\n"
        )
        text = text.replace("CURRENT[0].register", "STRATEGIES.register").replace("CURRENT[0].base", "Planned")
        text += "\n    def plan(self, route):\n        return [(route.epochs[-1], 'the last')]\n"
        (tmp_path / "greens.py").write_text(text)
        clash = text.replace('register("green")', 'register("clash")').replace("depth: int = setting(1", "tau: int = setting(1")
        (tmp_path / "clashes.py").write_text(clash)
        folder = tmp_path / "greens-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: greens\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text("[rco.strategies]\ngreen = greens\nclash = clashes\n")
        code = """
from rco.config.branches import Comparison
from rco.config.parameters import PARAMETERS, RunConfig
from rco.config.plugins import failures, installed
from rco.tasks.preflight import plugin_parameters, preflight
config = RunConfig.from_flat({"strategy": "green", "depth": "3"})
print(failures())
print(PARAMETERS["depth"].owners, PARAMETERS["tau"].group, "clash" in PARAMETERS["strategy"].help)
anchors = preflight(Comparison.of_run(config)).branches["student"].anchors
print(anchors.plugins == installed(), plugin_parameters(config), plugin_parameters(RunConfig()))
print([branch.name for branch in Comparison.of({"branches": "kd,green", "grid": {"depth": [1, 2]}}).branches])
"""
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        wrong, known, used, branches = done.stdout.splitlines() or [done.stderr] * 4
        assert wrong == """["strategy 'clash' cannot be used (greens: the name of its parameter tau is taken)"]"""
        assert known == "('green',) objective False"
        assert re.fullmatch(r"True {'plugins': 'strategy green of greens 1.2 \([0-9a-f]{12}\)'} {}", used), used
        assert branches == "['kd', 'green', 'green depth=2']"

    def test_a_pipeline_compiled_with_others_is_refused(self) -> None:
        require({})
        with pytest.raises(
            InputError, match=r"strategy = 'mine': is of mine 1.0 \(abc\) where the pipeline was compiled, and missing here"
        ):
            require({"strategy mine": "mine 1.0 (abc)"})


NETS = """
from torch import nn

def mynet(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def narrow(num_classes):
    return nn.Linear(1, num_classes)
"""
DIGITS: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "image_size": 8}


def install_models(folder: Path, models: str, package: str = "nets", text: str = NETS) -> None:
    """A package of one module with entry points for models, as pip lays it out."""
    (folder / f"{package}.py").write_text(text)
    about = folder / f"{package}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[rco.models]\n{models}\n")
    packages._found.cache_clear()


class TestModelsOfOtherPackages:
    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
        monkeypatch.syspath_prepend(str(tmp_path))
        yield lambda *told, **more: install_models(tmp_path, *told, **more)
        sys.modules.pop("nets", None)
        packages._found.cache_clear()

    def test_one_is_known_by_its_name_and_imported_when_it_is_built(self, install: Callable[..., None], tmp_path: Path) -> None:
        from rco.models.build import build_network, check_network
        from rco.tasks.preflight import code_digest

        install("mynet = nets:mynet\nanother.net_2 = nets : mynet")
        assert (packages.names(), packages.failures()) == (("another.net_2", "mynet"), {})
        origin = packages.origin("mynet")
        assert origin is not None
        assert (origin.package, origin.version, len(origin.digest)) == ("nets", "1.2", 64)
        assert (packages.origin("resnet8"), packages.origin("nets:mynet")) == (None, None)
        assert code_digest("mynet") == str(origin)
        with pytest.raises(
            InputError, match=r"'mynets': is not known. Did you mean 'mynet'\?.* wrn-40-2, another.net_2, mynet$"
        ):
            check_network("mynets", **DIGITS)
        assert "nets" not in sys.modules, "until one of its networks is built"
        check_network("mynet", **DIGITS)
        assert build_network("another.net_2", **DIGITS, seed=0)[1].weight.shape == (10, 64)
        (tmp_path / "nets.py").write_text(NETS + "\n")
        assert packages.origin("mynet") != origin, "an edit is another network"

    def test_what_it_uses_changes_with_the_package_and_nothing_else(self, install: Callable[..., None], tmp_path: Path) -> None:
        install("mynet = nets:mynet")
        before = settings_of({"student": "mynet"})
        assert settings_of({"student": "mynet"}) == before
        assert re.fullmatch(r"model mynet of nets 1.2 \([0-9a-f]{12}\)", before.filing.parameters["plugins"])
        (tmp_path / "nets.py").write_text(NETS + "\n")
        assert changed(settings_of({"student": "mynet"}), before) == {"init", "distill", "evaluate", "filing"}

    @pytest.mark.parametrize(
        ("models", "name", "words"),
        [
            ("resnet8 = nets:mynet", "resnet8", "taken by a network of this project or of torchvision"),
            ("wrn-10-3 = nets:mynet", "wrn-10-3", "taken by"),
            ("mobilenet_v2 = nets:mynet", "mobilenet_v2", "taken by"),
            ("torchvision/alexnet = nets:mynet", "torchvision/alexnet", "other characters"),
        ],
    )
    def test_a_name_that_is_taken_keeps_its_meaning(
        self, install: Callable[..., None], models: str, name: str, words: str
    ) -> None:
        from rco.models.build import build_network

        install(models)
        assert packages.names() == ()
        assert words in packages.failures()[name]
        build_network(name, in_channels=3, num_classes=10, image_size=64)
        assert packages.origin(name) is None
        assert "nets" not in sys.modules

    @pytest.mark.parametrize(
        ("models", "name", "words"),
        [
            ("my/net = nets:mynet", "my/net", "nets: the name has other characters than"),
            ("my net = nets:mynet", "my net", "nets: the name has other characters than"),
            ("n\u00e9t = nets:mynet", "n\u00e9t", "nets: the name has other characters than"),
            ("mynet = nets", "mynet", "nets: 'nets' is not of the form package.module:factory"),
            ("mynet = nets:mynet [more]", "mynet", "is not of the form package.module:factory"),
            ("mynet = no_such_package.nets:mynet", "mynet", "nets: there is no module no_such_package"),
            ("mynet = nets:mynet\nmynet = nets:narrow", "mynet", "nets: the name is taken by nets too"),
        ],
    )
    def test_one_that_cannot_be_used_takes_nothing_down(
        self, install: Callable[..., None], models: str, name: str, words: str
    ) -> None:
        from rco.models.build import build_network

        install(f"{models}\nright = nets:mynet")
        assert packages.names() == ("right",)
        assert words in packages.failures()[name]
        assert f"model {name!r} cannot be used ({packages.failures()[name]})" in failures()
        with pytest.raises(InputError) as caught:
            build_network(name, **DIGITS)
        assert words in str(caught.value)
        assert "nets" not in sys.modules
        build_network("right", **DIGITS)

    def test_two_packages_with_one_name(self, install: Callable[..., None]) -> None:
        install("mynet = nets:mynet")
        install("mynet = others:mynet", "others")
        assert packages.names() == ()
        assert packages.failures() == {"mynet": "nets: the name is taken by others too"}

    @pytest.mark.parametrize(
        ("text", "factory", "words"),
        [
            ("import no_such_module", "mynet", r"cannot be used \(nets: nets cannot be imported \(ModuleNotFoundError"),
            ("raise SystemExit(3)", "mynet", r"cannot be used \(nets: nets cannot be imported \(SystemExit: 3"),
            (NETS, "mynets", r"cannot be used \(nets: nets has no 'mynets'\)"),
            (NETS, "narrow", "does not work with 1x8x8 images"),
        ],
    )
    def test_what_is_known_when_it_is_built_is_said_then(
        self, install: Callable[..., None], text: str, factory: str, words: str
    ) -> None:
        from rco.models.build import check_network

        install(f"mynet = nets:{factory}", text=text)
        assert packages.failures() == {}
        with pytest.raises(InputError, match=words) as caught:
            check_network("mynet", **DIGITS, parameter="student")
        assert (caught.value.parameter, caught.value.value) == ("student", "mynet")

    def test_the_names_that_are_taken(self) -> None:
        from rco.models.build import network_names
        from rco.models.families import torchvision

        ours = (*network_names(), "wrn-22-8", "mobilenetv2-t1-w1.5")
        assert not [name for name in (*ours, *torchvision.list_names()) if not packages._TAKEN.fullmatch(name)]

    def test_the_command_line_knows_them_without_importing_anything(self, tmp_path: Path) -> None:
        install_models(tmp_path, "mynet = nets:mynet\nresnet8 = nets:mynet")
        packages._found.cache_clear()
        code = """
import sys
from click.testing import CliRunner
from pipelines.cli.main import main
from rco.config.plugins import installed, require
wide = {"terminal_width": 1000, "max_content_width": 1000}
print("of another package (mynet)" in CliRunner().invoke(main, ["run", "--help"], **wide).output)
print(CliRunner().invoke(main, ["sync", "--help"]).output.splitlines()[0])
print(installed())
require(installed())
print([name for name in ("nets", "torch", "torchvision") if name in sys.modules])
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        helped, warned, known, imported = done.stdout.splitlines() or [done.stderr] * 4
        assert helped == "True"
        assert warned.startswith("rco: warning: model 'resnet8' cannot be used (nets: the name is taken by"), warned
        assert re.fullmatch(r"{'model mynet': 'nets 1.2 \([0-9a-f]{12}\)'}", known)
        assert imported == "[]"
