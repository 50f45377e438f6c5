"""Strategies that damage valid inputs: bytes, JSON documents, and the values that have broken readers before."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

#: Values of the wrong type, size or meaning, for any place of a document.
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**63) - 1, 10**30, 1e-300, 255, 65536, 10**9),
    *("", " ", "x", "..", ".", "/", "../../owned", "/etc/passwd", "\0", "a\0b", "\ud800", "\x1b[2J", "a\nb", "é", "x" * 5000),
    *("arrays", "files", "os:system", "builtins:exec", "rco_fuzz_canary:factory", "wrn-99999999999-9", "mobilenetv2-t6-w1e300"),
    *("wrn-40-999999", "vit_b_16", "torchvision/resnet152", "'; DROP TABLE runs; --", "0" * 64, "NaN", "1e999"),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": {"b": []}}, list(range(50)), [0] * 300, ["a"] * 300),
]

_INTERESTING = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
]
_INTERESTING += [b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", (2**40).to_bytes(8, "little"), b"{", b"}", b'"', b"[" * 40, b"\n", b"../"]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 6) -> bytes:
    """`whole` with up to `most` damages: bytes changed, put in, taken out, doubled, cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "double", "cut", "noise"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                new = draw(st.sampled_from(_INTERESTING))
                content[at : at + len(new)] = new
            case "insert":
                content[at:at] = draw(st.sampled_from(_INTERESTING))
            case "delete":
                del content[at : at + draw(st.integers(1, 64))]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 600))]
            case "cut":
                del content[at:]
            case "noise":
                content[at : at + 16] = draw(st.binary(max_size=16))
    return bytes(content)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [path, *(place for key, value in inner for place in _places(value, (*path, key)))]


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A JSON document with up to `most` values replaced, removed, moved, doubled, wrapped or renamed."""
    root = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(0, most))):
        *above, key = draw(st.sampled_from([(0, *p) for p in _places(root[0])]))
        parent = _at(root, tuple(above))
        match draw(st.sampled_from(["replace", "replace", "remove", "move", "double", "wrap", "rename", "nudge"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
            case "remove" if above:
                del parent[key]
            case "move":
                parent[key] = copy.deepcopy(_at(root[0], draw(st.sampled_from(_places(root[0])))))
            case "double" if isinstance(parent[key], list):
                parent[key] = parent[key] * draw(st.integers(2, 4))
            case "wrap":
                parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}]))
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(["", "x", "__class__", "format", "epoch"]))] = parent.pop(key)
            case "nudge" if isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
                parent[key] += draw(st.sampled_from([-1, 1, 0.5, 1000]))
    return root[0]


_RAW = [
    *(
        "",
        "null",
        "[]",
        "{}",
        "NaN",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"a":' * 5_000,
        "1" * 10_000,
        "1e999999",
    ),
    *('"\\ud800"', "\ufeff{}", "[1,]", "{'a': 1}", "[" * 500 + "]" * 500),
]


def json_texts(document: Any) -> st.SearchStrategy[bytes]:
    """JSON files: the document changed, its bytes damaged, or something else altogether."""
    dumped = changed(document).map(lambda d: json.dumps(d, indent=1).encode())
    broken = damaged(json.dumps(document, indent=1).encode())
    other = st.sampled_from(_RAW).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(dumped, dumped, dumped, dumped, broken, other)
