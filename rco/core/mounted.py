"""Settings and secrets that a task finds as files, and takes as if they were variables of its environment.

A cluster mounts one ConfigMap and one Secret into a task, a file a key. A dozen variables by reference would be written into
every task of the workflow, six times each; and a variable by reference cannot stand beside one of the same name that Kubeflow's
MLflow plugin sets, so those of MLflow that cannot be mounted have another name there (`by_reference`). Only keys that the
deployment file lists are read, and a variable that is set is never changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from rco.core.errors import InputError

FOLDER = Path("/etc/rco/environment")
#: Says what to read (`describe`), where that is not `DEFAULT`.
VARIABLE = "RCO_ENVIRONMENT"

_SOURCE = re.compile(r"(?P<folder>(config-map|secret)/[^/:! ]+)(?P<required>!?):(?P<keys>[^ ]+)")


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A ConfigMap or Secret that is mounted.

    Attributes:
        folder: below `FOLDER`: "config-map/NAME" or "secret/NAME".
        variables: variable -> key, which is the name of its file.
        optional: go on without what is missing.
    """

    folder: str
    variables: Mapping[str, str]
    optional: bool = True

    @property
    def described(self) -> str:
        """As `read` takes it."""
        keys = ",".join(v if v == key else f"{v}={key}" for v, key in self.variables.items())
        return f"{self.folder}{'' if self.optional else '!'}:{keys}"

    @classmethod
    def read(cls, text: str) -> Mounted:
        """The other way round.

        Raises:
            InputError: text that `described` did not make.
        """
        match = _SOURCE.fullmatch(text)
        if match is None:
            raise InputError(VARIABLE, text, "does not describe a mounted ConfigMap or Secret", "Compile the pipeline anew")
        pairs = (pair.partition("=") for pair in match["keys"].split(","))
        variables = {variable: key or variable for variable, _, key in pairs}
        return cls(folder=match["folder"], variables=variables, optional=not match["required"])


#: What tasks know of MLflow and S3 where a site says nothing else.
DEFAULT = (
    Mounted(
        folder="config-map/rco-settings",
        variables={
            name: name
            for name in (
                "MLFLOW_TRACKING_URI",
                "MLFLOW_S3_ENDPOINT_URL",
                "AWS_ENDPOINT_URL_S3",
                "AWS_REGION",
                "RCO_S3_ADDRESSING_STYLE",
            )
        },
    ),
    Mounted(
        folder="secret/rco-credentials",
        variables={
            name: name
            for name in (
                "MLFLOW_TRACKING_USERNAME",
                "MLFLOW_TRACKING_PASSWORD",
                "MLFLOW_TRACKING_TOKEN",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
            )
        },
    ),
)


def describe(sources: Iterable[Mounted]) -> str:
    """What `VARIABLE` says of these sources; empty if they are the default ones."""
    sources = tuple(sources)
    return "" if sources == DEFAULT else " ".join(source.described for source in sources)


_OURS, _PLUGINS = "RCO_", "MLFLOW_"


def by_reference(variable: str) -> str:
    """The name of a variable where it comes by reference: that of one which Kubeflow's MLflow plugin may set is ours."""
    return f"{_OURS}{variable}" if variable.startswith(_PLUGINS) else variable


def take(environment: MutableMapping[str, str] = os.environ, folder: Path = FOLDER) -> None:
    """Set the variables that are mounted, or there by our name for them, and not yet set; else nothing happens.

    Raises:
        InputError: a key that must be there is not, or its file is not text.
    """
    for name in [name for name in environment if name.startswith(by_reference(_PLUGINS))]:
        environment.setdefault(name.removeprefix(_OURS), environment[name])
    described = environment.get(VARIABLE)
    sources = DEFAULT if described is None else [Mounted.read(text) for text in described.split()]
    for source in sources:
        for variable, key in source.variables.items():
            if variable in environment:
                continue
            path = folder / source.folder / key
            kind, _, name = source.folder.partition("/")
            if path.is_file():
                environment[variable] = _text(path, variable)
            elif not source.optional:
                problem = f"is not set: the {'Secret' if kind == 'secret' else 'ConfigMap'} {name} has no key {key}"
                raise InputError(variable, "", problem, "Add it, or write optional: true in the deployment file")


def _text(path: Path, variable: str) -> str:
    """What the file holds, without the newline that `kubectl create secret --from-file` leaves at its end."""
    try:
        text = path.read_text().rstrip("\r\n")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(variable, "(hidden)", f"is not text in {path}", "Write the value anew")
    return text
