"""Options that several commands have, and the parameters of the pipelines as options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from rco.config.kinds import OPTIONS
from rco.config.parameters import PARAMETERS, Parameter
from rco.core.errors import InputError

Command = Callable[..., Any]
_TYPES: dict[type, Any] = {int: int, float: float, str: str, list: str}


def parameter_options(
    names: Iterable[str], several: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for pipeline parameters. Only those that the user gave reach the command, as `flags`.

    Args:
        several: those that take several values, as text.
        defaults: where the pipeline's defaults are not a run's.
    """
    shown = [PARAMETERS[name] for name in names]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def with_flags(**given: Any) -> Any:
            flags = {p.name: given.pop(p.name) for p in shown}
            return command(flags={name: value for name, value in flags.items() if value is not None}, **given)

        with_flags.__doc__, with_flags.__name__ = command.__doc__, command.__name__
        with_flags.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for p in reversed(shown):
            kind = {"metavar": "V;V" if p.kind is list else "V,V"} if p.name in several else _kind(p)
            default = (defaults or {}).get(p.name, p.default)
            with_flags = click.option(*_flag(p), p.name, **kind, default=None, help=f"{p.help}  [{_shown(default)}]")(
                with_flags
            )
        return with_flags

    return decorate


def _flag(p: Parameter) -> list[str]:
    name = "--" + p.name.replace("_", "-")
    if p.kind is bool:
        return [f"{name}/--no-{p.name.replace('_', '-')}"]
    return [name, "--lambda"] if p.name == "lam" else [name]


def _kind(p: Parameter) -> dict[str, Any]:
    if p.kind is bool:
        return {}
    return {"type": _TYPES[p.kind], "metavar": "A,B,..." if p.kind is list else p.kind.__name__.upper()}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def gathered(name: str, cls: type, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that reach a command as one object: the fields of `cls`, by name.

    Args:
        name: of the command's argument.
        cls: a dataclass.
        options: of its fields, in the order of `--help`.
    """

    def decorate(command: Command) -> Command:
        def with_object(**given: Any) -> Any:
            return command(**{name: cls(**{f.name: given.pop(f.name) for f in fields(cls)})}, **given)

        with_object.__doc__, with_object.__name__ = command.__doc__, command.__name__
        with_object.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(options):
            with_object = option(with_object)
        return with_object

    return decorate


recipe_option = click.option("--recipe", metavar="NAME|FILE", help="parameter file; flags win over it")
home_option = click.option(
    "--home", type=click.Path(path_type=Path), default=Path(".rco"), show_default=True, help="directory of local state"
)
no_cache_option = click.option("--no-cache", is_flag=True, help="run every task, also what has not changed")


def comparison_option(name: str, flag: str = "") -> Callable[[Command], Command]:
    """An option for a parameter that a comparison has and a single run has not."""
    o = OPTIONS[name]
    return click.option(
        f"--{flag or name.replace('_', '-')}",
        name,
        default=None,
        metavar="A,B,..." if o.kind is list else "TEXT",
        help=f"{o.help}  [{_shown(o.default)}]",
    )


def race_option(refused: str = "", remedy: str = "") -> Callable[[Command], Command]:
    """The option `--race`.

    Args:
        refused, remedy: why a command cannot do it, and what can be done; the option is hidden there, and reaches no command.
    """

    def refuse(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            raise InputError("race", given, f"cannot be had here. {refused}", remedy)

    what = "drop the worse half of the branches, round by round, and compare the winner with kd alone"
    if not refused:
        return click.option("--race", is_flag=True, help=what)
    return click.option("--race", is_flag=True, hidden=True, expose_value=False, callback=refuse, help=what)


def integers(name: str, text: str) -> list[int]:
    """Whole numbers from "10,20,40".

    Raises:
        InputError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(name, text, "is not a list of whole numbers", "Write them as 10,20,40") from None


def find_modules_here() -> None:
    """Have modules of the current folder found, as by `rco run`, whose processes Python starts with -m."""
    here = str(Path.cwd())
    if not sys.flags.safe_path and here not in sys.path:
        sys.path.insert(0, here)
