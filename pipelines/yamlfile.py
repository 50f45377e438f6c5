"""YAML files that people write: plain data, and nothing that grows or runs when it is read."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from rco.errors import InputError

_MOST_BYTES = 2**16
_DEEPEST = 32


class ShallowLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but for depths: a page of brackets would take it hours."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        self._require_shallow(self.flow_level)
        super().fetch_flow_collection_start(token)  # type: ignore[no-untyped-call]

    def add_indent(self, column: int) -> bool:
        self._require_shallow(len(self.indents))
        return bool(super().add_indent(column))  # type: ignore[no-untyped-call]

    def _require_shallow(self, depth: int) -> None:
        if depth >= _DEEPEST:
            raise yaml.scanner.ScannerError(None, None, "it is nested too deeply", self.get_mark())  # type: ignore[no-untyped-call]


class _Loader(ShallowLoader):
    """Refuses also aliases, with which a page of text becomes gigabytes, and a name that is given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read: write the value out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        document = super().construct_mapping(node, deep)
        if len(document) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a name is given twice", node.start_mark)
        return document


def read_yaml(path: Path, parameter: str) -> dict[str, Any]:
    """A mapping from a YAML file; empty if the file is.

    Args:
        parameter: under which the user named the file, for messages.

    Raises:
        InputError: it cannot be read, is no YAML, or no mapping of names.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(parameter, str(path), f"has more than {_MOST_BYTES // 2**10} KiB", "Name a file of parameters")
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(parameter, str(path), f"cannot be read ({error.strerror})", "Check path and permissions") from None
    except InputError:
        raise
    # Not UTF-8, a date that is none, a number without end; and what a tag makes of a value that is not its own.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            parameter, str(path), f"is not YAML as it is read here ({reason})", "Write one 'parameter: value' a line"
        ) from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise InputError(parameter, str(path), "is not a mapping of parameters", "Write one 'parameter: value' a line")
    return document
