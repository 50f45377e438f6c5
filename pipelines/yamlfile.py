"""YAML files that people write: plain data, and nothing that grows or runs when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rco.core.errors import InputError

MOST_BYTES = 2**16
_DEEPEST = 32


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is not read here; `problem` is in our words, and quotes no value."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)  # type: ignore[no-untyped-call]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but for depths (a page of brackets would take it hours), aliases (with which a page becomes
    gigabytes), and names that are given twice."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        self._require_shallow(self.flow_level)
        super().fetch_flow_collection_start(token)  # type: ignore[no-untyped-call]

    def add_indent(self, column: int) -> bool:
        self._require_shallow(len(self.indents))
        return bool(super().add_indent(column))  # type: ignore[no-untyped-call]

    def _require_shallow(self, depth: int) -> None:
        if depth >= _DEEPEST:
            raise _RefusedError("is nested too deeply", self.get_mark())  # type: ignore[no-untyped-call]

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[no-untyped-call]
            raise _RefusedError("holds an alias (*name); write the value out", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for name, count in Counter(str(key.value) for key, _ in node.value).items():
            if count > 1:
                raise _RefusedError(f"has {name[:60]!r} twice in one mapping; keep one of them", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_undefined(self, node: yaml.Node) -> NoReturn:
        raise _RefusedError("has a tag that is not of plain data", node.start_mark)


_Loader.add_constructor(None, _Loader.construct_undefined)  # type: ignore[type-var]


def read_yaml(path: Path, parameter: str, remedy: str) -> Any:
    """What a YAML file holds; None if it is empty.

    Args:
        parameter: under which the user named the file, for messages. They name the line, and quote no value: it may be a
            secret.
        remedy: what the file should be like, for messages.

    Raises:
        InputError: it cannot be read, is too large, or is no YAML as it is read here.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(parameter, str(path), f"is larger than {MOST_BYTES // 2**10} KiB", remedy)
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(parameter, str(path), f"cannot be read ({error.strerror})", "Check path and permissions") from None
    except InputError:
        raise
    # Not UTF-8, a date that is none, a number without end; and what a tag makes of a value that is not its own.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        why = f": it {error.problem}" if isinstance(error, _RefusedError) else ""
        raise InputError(parameter, str(path), f"is not YAML{line}{why}", remedy) from None
