"""What is true of the package's files as such. The floors are lint-imports' (pyproject.toml)."""

from __future__ import annotations

import ast
from pathlib import Path

import rco

_LONGEST = 400  # lines


def test_a_long_file_says_why() -> None:
    long = [path for path in Path(rco.__file__).parent.rglob("*.py") if len(path.read_text().splitlines()) > _LONGEST]
    assert [
        path.name for path in long if "More than 400 lines:" not in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ] == []
