"""Asks one tree's command line and compiled packages, in one process. Started with `python -P`, with PYTHONPATH = the tree.

It imports nothing by a path that may move: the command comes from the tree's pyproject.toml, and the first task's code from the
compiled package, where a cluster finds it too. So this file stands alone: the tree may lack tests.golden.

    driver.py TREE command ARGUMENT...      is the command `rco` of that tree
    driver.py TREE ask QUESTIONS OUTPUT     answers questions.json with JSON: facts, by name
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WIDE = {"terminal_width": 1000, "max_content_width": 1000}  # one line an option

Facts = dict[str, Any]


def entry_point(tree: Path) -> Callable[..., Any]:
    """The command `rco` of a tree, and of no other that is installed."""
    target = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]["rco"]
    module, _, name = target.partition(":")
    command: Callable[..., Any] = getattr(importlib.import_module(module), name)
    for imported in ("rco", module):
        place = Path(importlib.import_module(imported).__file__ or "")
        if not place.is_relative_to(tree):
            sys.exit(f"{imported} comes from {place}, not from {tree}")
    return command


def helps(main: Any) -> Facts:
    """`--help` of every command: usage, text, each option or command, and their order."""
    import click

    found: Facts = {}

    def walk(command: Any, words: list[str]) -> None:
        _, text = _invoke(main, [*words, "--help"], **WIDE)
        for name, value in help_facts(text).items():
            found[f"help/{' '.join(['rco', *words])}/{name}"] = value
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                walk(command.get_command(click.Context(command), name), [*words, name])

    walk(main, [])
    return found


def help_facts(text: str) -> Facts:
    """One help text taken apart, so that a changed line is a difference of its own."""
    usage, _, rest = text.partition("\n")
    found: Facts = {"usage": " ".join(usage.split())}
    described: list[str] = []
    section, name = "", ""
    order: dict[str, list[str]] = {}
    for line in rest.splitlines():
        if re.fullmatch(r"[A-Z]\w+:", line):
            section, name = line.rstrip(":").lower(), ""
        elif not section:
            described.append(line.strip())
        elif line.startswith("  ") and not line.startswith("   "):
            name = re.split(r"[ ,/]", line.strip())[0] if line.strip().startswith("--") else line.split()[0].rstrip(",")
            if name.startswith("-") and (long := re.search(r"--[\w-]+", line)):
                name = long[0]
            order.setdefault(section, []).append(name)
            found[f"{section}/{name}"] = " ".join(line.split())
        elif name and line.strip():
            found[f"{section}/{name}"] += " " + " ".join(line.split())
    found["text"] = "\n".join(described).strip()
    for section, names in order.items():
        found[f"{section} in order"] = names
    return found


def packages(main: Any, deployment: Path) -> tuple[Facts, dict[str, dict[str, Any]]]:
    """Input forms, tasks and placements of the compiled packages; and the packages themselves, by name."""
    import yaml

    found: Facts = {}
    compiled: dict[str, dict[str, Any]] = {}
    for which, options in (("plain", []), ("placed", ["--deployment", str(deployment)])):
        folder = Path(which)
        paths = ["--output", str(folder / "rco.yaml"), "--comparison", str(folder / "comparison.yaml")]
        status, text = _invoke(main, ["compile", *paths, *options])
        found[f"packages/{which}/status"] = str(status)
        found[f"packages/{which}/text"] = text
        for path in sorted(folder.glob("*.yaml")):
            documents = list(yaml.safe_load_all(path.read_text()))
            if which == "plain":
                compiled[path.stem] = documents[0]
                found.update({f"packages/{path.stem}/{name}": value for name, value in package_facts(documents[0]).items()})
            found.update({f"packages/{path.stem}/{which}/{name}": v for name, v in placement_facts(documents).items()})
    return found, compiled


def package_facts(package: dict[str, Any]) -> Facts:
    """Of a compiled package: its names, its input form, its tasks as they are nested."""
    form = package["root"].get("inputDefinitions", {}).get("parameters", {})
    found: Facts = {f"pipeline/{key}": str(value) for key, value in package["pipelineInfo"].items()}
    for name, about in form.items():
        found.update({f"form/{name}/{key}": v if isinstance(v, str) else _json(v) for key, v in about.items()})
    found["form in order"] = list(form)
    found["components"] = "\n".join(sorted({_unnumbered(name) for name in package["components"]}))
    for path, task in _tasks(package, package["root"]["dag"], ""):
        kept = {key: task[key] for key in ("cachingOptions", "retryPolicy", "dependentTasks", "triggerPolicy") if key in task}
        found[f"tasks/{path}"] = _json({"component": _unnumbered(task["componentRef"]["name"]), **kept})
    return found


def placement_facts(documents: list[Any]) -> Facts:
    """What the tasks of a package are given by the cluster, by the name of their component."""
    executors = documents[0]["deploymentSpec"]["executors"]
    platform: dict[str, Any] = {}
    if len(documents) > 1:
        platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"].get("executors", {})
    placed: dict[str, set[str]] = {}
    for name, executor in executors.items():
        container = {key: value for key, value in executor["container"].items() if key not in ("command", "args")}
        about = _json({"container": container, "kubernetes": platform.get(name)}, indent=1)
        placed.setdefault(_unnumbered(name), set()).add(about)
    return {f"placement/{name}": "\n".join(sorted(abouts)) for name, abouts in placed.items()}


def _tasks(package: dict[str, Any], dag: dict[str, Any], above: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, task in dag["tasks"].items():
        yield above + name, task
        if inner := package["components"][task["componentRef"]["name"]].get("dag"):
            yield from _tasks(package, inner, f"{above}{name}/")


def _unnumbered(name: str) -> str:
    return re.sub(r"(-\d+)+$", "", name)


def first_task(package: dict[str, Any]) -> Callable[..., Any]:
    """The task that checks a run, from its compiled package: takes values of the input form, as a cluster would hand them."""
    task = next(t for p, t in _tasks(package, package["root"]["dag"], "") if p.split("/")[-1].startswith("check"))
    component = package["components"][task["componentRef"]["name"]]
    container = package["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    form = package["root"]["inputDefinitions"]["parameters"]
    kinds = {"NUMBER_INTEGER": int}

    def call(**given: Any) -> Any:
        if unknown := [key for key in given if key not in form]:
            raise TypeError(f"the form has no {', '.join(unknown)}")  # as KFP says, in its own words
        arguments = {}
        for parameter, fed in task["inputs"]["parameters"].items():
            if "componentInputParameter" in fed:
                key = fed["componentInputParameter"].removeprefix("pipelinechannel--")
                value = given.get(key, form[key].get("defaultValue"))
            else:
                value = fed["runtimeValue"]["constant"]
            kind = kinds.get(component["inputDefinitions"]["parameters"][parameter]["parameterType"])
            arguments[parameter] = kind(value) if kind and value is not None and not isinstance(value, str) else value
        return _function_of(container, component, arguments)(**arguments)

    return call


def _function_of(container: dict[str, Any], component: dict[str, Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    """What a component's container calls, which is written in the package or in the image (`components.__main__`)."""
    command, words = container["command"], container["args"]
    if command[1:3] == ["-m", "components"]:
        module = importlib.import_module(f"components.{command[3]}")
        outputs = component.get("outputDefinitions", {}).get("parameters", {})
        made: Callable[..., Any] = module.in_image(
            {"inputs": {"parameterValues": arguments}, "outputs": {"parameters": outputs}}
        )
        return made
    source = next(part for part in command if "\ndef " in part)
    namespace: dict[str, Any] = {"__name__": "package"}
    exec(compile(ast.parse(source), "package", "exec"), namespace)
    written: Callable[..., Any] = namespace[words[words.index("--function_to_execute") + 1]]
    return written


def checks(package: dict[str, Any], questions: list[dict[str, Any]], name: str) -> Facts:
    """What the first task of a package says to values of its form."""
    found: Facts = {}
    call = first_task(package)
    for given in questions:
        try:
            call(**given)
            answer = "sound"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        found[f"checks/{name} {_json(given)}"] = answer
    return found


def commands(main: Any, lines: list[list[str]]) -> Facts:
    """Exit status and text of command lines."""
    found: Facts = {}
    for words in lines:
        status, text = _invoke(main, words)
        where = f"commands/rco {' '.join(words)}"
        found[f"{where}/status"] = str(status)
        found[f"{where}/text"] = text
    return found


def _invoke(main: Any, words: list[str], **extra: Any) -> tuple[int, str]:
    from click.testing import CliRunner

    kept = dict(os.environ)
    try:
        result = CliRunner().invoke(main, words, prog_name="rco", **extra)
    finally:  # MLflow and others put addresses there
        os.environ.clear()
        os.environ.update(kept)
    text = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text += f"{type(result.exception).__name__}: {result.exception}"
        print(f"rco {' '.join(words)}", file=sys.stderr)
        traceback.print_exception(result.exception)
    return result.exit_code, text.strip()


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=indent)


def ask(main: Any, questions: dict[str, Any]) -> Facts:
    """Facts of the parts that are asked for; a part that cannot be asked is a fact as well."""
    found: Facts = {}
    parts = questions["parts"]
    if "help" in parts:
        found.update(helps(main))
    if "packages" in parts or "checks" in parts:
        about, compiled = packages(main, Path(questions["deployment"]))
        if "packages" in parts:
            found.update(about)
        if "checks" in parts:
            for name, given in questions["checks"].items():
                if name in compiled:
                    found.update(checks(compiled[name], given, name))
    if "commands" in parts:
        found.update(commands(main, questions["commands"]))
    return found


def _main() -> None:
    tree, what, *rest = sys.argv[1:]
    command = entry_point(Path(tree))
    if what == "command":
        sys.argv = ["rco", *rest]
        command()
        return
    questions, output = map(Path, rest)
    with contextlib.suppress(BrokenPipeError):
        output.write_text(json.dumps(ask(command, json.loads(questions.read_text()))))


if __name__ == "__main__":
    _main()
