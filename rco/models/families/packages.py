"""Networks of other packages: entry points of the group `rco.models`, such as `mynet = "mypackage.nets:mynet"`.

The entry point's name is the model's, its value a factory, which is called as one that a user names (`factories`). The names
are known without importing anything, not even torch; a package is imported when a network of its own is built. An entry point
that cannot be used takes nothing else down: it is told in `failures`, and whoever chooses its name is told why.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rco.core.code import package_digest
from rco.core.errors import InputError
from rco.core.plugins import Origin

if TYPE_CHECKING:
    from rco.models.families.layers import NetworkMaker

GROUP = "rco.models"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FACTORY = re.compile(r"(\w+(?:\.\w+)*)\s*:\s*(\w+(?:\.\w+)*)")
# Ours, and torchvision's, which go by their plain names too: what they mean must not depend on what is installed. Their lists
# cannot be had without importing torch, so these are their looks; a test compares them with the lists.
_TAKEN = re.compile(
    r"digits-(cnn-[ls]|mlp)|resnet\d+(x\d+)?|wrn-\d+-\d+|mobilenetv2-t\d+-w\d+(\.\d+)?|vgg\d+(_bn)?"
    r"|alexnet|convnext_(tiny|small|base|large)|densenet\d+|efficientnet_(b\d|v2_[sml])|googlenet|inception_v3|maxvit_t"
    r"|mnasnet\d_\d+|mobilenet_v(2|3_large|3_small)|regnet_[xy]_[\d_]+[mg]f|resnext\d+_\d+x\d+d|shufflenet_v2_x\d_\d"
    r"|squeezenet\d_\d|swin_(v2_)?[tsb]|vit_[bhl]_\d+|wide_resnet\d+_\d"
)


def names() -> tuple[str, ...]:
    """Of the networks of other packages that are installed here, in alphabetical order."""
    return tuple(_found()[0])


def failures() -> dict[str, str]:
    """The entry points that cannot be used: name -> the package and why."""
    return dict(_found()[1])


def is_foreign(name: str) -> bool:
    """Whether building the network `name` runs code that is neither ours nor torchvision's: the user's or another package's."""
    return ":" in name or name in _found()[0]


def origin(name: str) -> Origin | None:
    """The package of a network, as its code is now; None: it is not of another package, or named by its factory."""
    entry = _found()[0].get(name)
    if entry is None or entry.dist is None:
        return None
    return Origin(entry.dist.name, entry.dist.version, package_digest(_path(entry).partition(":")[0]))


def factory_path(name: str) -> str:
    """`package.module:factory` of a network that is neither ours nor torchvision's."""
    return name if ":" in name else _path(_found()[0][name])


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What calls the factory of a network of another package, which is imported; None: there is no network of that name.

    Raises:
        InputError: the package cannot be imported, or has no such factory; it names `parameter`. What is returned raises it as
            `factories.find_maker` says.
    """
    entry = _found()[0].get(name)
    if entry is None:
        return None
    from rco.models.families import factories

    try:
        return factories.find_maker(name, parameter, _path(entry))
    except InputError as error:
        raise unusable(parameter, name, f"{_package(entry)}: {error.problem}") from error


def unusable(parameter: str, name: str, problem: str) -> InputError:
    """The refusal of a network that cannot be used, in the words of the other plug-ins."""
    return InputError(parameter, name, f"cannot be used ({problem})", "Mend or remove that package")


@cache
def _found() -> tuple[dict[str, EntryPoint], dict[str, str]]:
    """The entry points by name, and what is wrong with those that cannot be used."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        by_name.setdefault(entry.name, []).append(entry)
    right, wrong = dict[str, EntryPoint](), dict[str, str]()
    for name, (entry, *others) in by_name.items():
        if problem := _problem(entry):
            wrong[name] = f"{_package(entry)}: {problem}"
        elif others:
            wrong[name] = f"{_package(entry)}: the name is taken by {_package(others[0])} too"
        else:
            right[name] = entry
    return right, wrong


def _problem(entry: EntryPoint) -> str:
    if not _PLAIN.fullmatch(entry.name):
        return "the name has other characters than letters, digits, '.', '_' and '-'"
    if _TAKEN.fullmatch(entry.name):
        return "the name is taken by a network of this project or of torchvision"
    if not (path := _path(entry)):
        return f"{entry.value!r} is not of the form package.module:factory"
    top = path.partition(":")[0].partition(".")[0]
    try:
        missing = find_spec(top) is None
    except (ImportError, ValueError):
        missing = True
    return f"there is no module {top}" if missing else ""


def _path(entry: EntryPoint) -> str:
    """`package.module:factory`; empty: the entry point's value is something else."""
    match = _FACTORY.fullmatch(entry.value)
    return f"{match[1]}:{match[2]}" if match else ""


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value
