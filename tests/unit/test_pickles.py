"""Pickles are read as data: nothing runs, and work and memory are bounded by their bytes."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rco.core import pickles
from rco.core.pickles import Global, Inert, PickleError, read_pickle
from tests.hostile import hostile_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


class Config:
    """A class of the user's own."""

    def __init__(self) -> None:
        self.lr = 0.1


def read(program: bytes, known: pickles.Known | None = None) -> Any:
    return read_pickle(io.BytesIO(program), known or {}, lambda saved: ("stored", saved))


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_is_as_pickle_reads_it(document: Any, protocol: int) -> None:
    # Before protocol 3, bytes are made by a function.
    known = {"_codecs.encode": lambda text, encoding: text.encode(encoding), "__builtin__.bytes": bytes}
    assert read(pickle.dumps(document, protocol), known) == document


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Config(), "copy_reg._reconstructor"),
        (argparse.Namespace(lr=0.1), "copy_reg._reconstructor"),
        (np.float64(0.5), "numpy._core.multiarray.scalar"),
        (np.arange(3), "numpy._core.multiarray._reconstruct"),
        (Path("a"), "pathlib.PosixPath"),
        (collections.Counter("aab"), "collections.Counter"),
    ],
)
def test_objects_become_inert_and_what_is_beside_them_is_read(thing: Any, name: str, protocol: int) -> None:
    back = read(pickle.dumps({"before": 1, "thing": thing, "after": [2]}, protocol))
    assert (back["before"], back["after"]) == (1, [2])
    assert isinstance(back["thing"], Inert)
    if protocol == 2 and name.startswith("copy_reg"):
        name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if protocol in (0, 1, 2):
        assert back["thing"].name == name


def test_names_are_only_names() -> None:
    back = read(pickle.dumps([collections.Counter, Config], 2))
    assert [(type(thing), thing.name) for thing in back] == [
        (Global, "collections.Counter"),
        (Global, f"{__name__}.Config"),
    ]


def test_hostile_pickles_do_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "owned"
    for program in (
        hostile_pickle(canary),
        b"cos\nsystem\n(S'touch %s'\ntR." % bytes(canary),
        b"(S'touch %s'\nios\nsystem\n." % bytes(canary),
        b"(cos\nsystem\nS'touch %s'\no." % bytes(canary),
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x10\x85R.",
    ):
        assert isinstance(read(program), Inert)
    assert not canary.exists()
    pickle.loads(hostile_pickle(canary))
    assert canary.exists(), "the canary works"


def test_only_what_is_known_is_called() -> None:
    made = read(pickle.dumps(collections.OrderedDict(a=1), 2), {"collections.OrderedDict": lambda *_: {"made": True}})
    assert made == {"made": True, "a": 1}


def test_persistent_ids_are_handed_over() -> None:
    assert read(b"Pname\n.") == ("stored", "name")
    assert read(b"K\x07Q.") == ("stored", 7)


def test_text_of_python_2() -> None:
    assert read(b"U\x02\xc3\xa9.") == "é"
    assert read(b"U\x01\xe9.") == b"\xe9"


def test_what_holds_itself_can_be_read() -> None:
    loop: list[Any] = []
    loop.append(loop)
    back = read(pickle.dumps(loop, 2))
    assert back[0] is back


def test_the_stream_is_left_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps(2) + b"rest")
    assert [read_pickle(stream, {}, lambda _: None) for _ in range(2)] == [1, 2]
    assert stream.read() == b"rest"


DAMAGED = [
    *(b"", b".", b"N", b"0.", b"1.", b"h\0.", b"q\0.", b"t.", b"R.", b"NNR.", b"Q.", b"\x86.", b"N\x86.", b"(u.", b"}N(NNNu."),
    *(b"Na.", b"(o.", b"b.", b"Nb.", b"\x93.", b"NN\x93.", b"\x82\x01.", b"\x97.", b"\x8b\xff\xff\xff\xff.", b"\xff."),
    *(b"X\xff\xff\xff\x7fa.", b"I" + b"1" * 5000 + b"\n.", b"cx\n\n.", b"c" + b"x" * 600 + b"\nx\n.", b"not a pickle"),
]


@pytest.mark.parametrize("program", DAMAGED)
def test_damaged_pickles_are_refused_in_words(program: bytes) -> None:
    with pytest.raises(PickleError, match="its pickle"):
        read(program)


def test_work_is_bounded() -> None:
    many = b"\x80\x02(" + b"N" * 2000 + b"l"
    with pytest.raises(PickleError, match="more than 1,000 steps"):
        read_pickle(io.BytesIO(many + b"."), {}, lambda _: None, most_steps=1000)
    # A list that is copied again and again by few opcodes.
    copied = many + b"q\0" + b"ccollections\ndeque\nh\0\x85R0" * 2000 + b"."
    with pytest.raises(PickleError, match="steps"):
        read(copied, {"collections.deque": list})


def test_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST_TEXT", 100)
    read(pickle.dumps(["a" * 40, "b" * 40], 2))
    with pytest.raises(PickleError, match="more than 100 bytes of text"):
        read(pickle.dumps(["a" * 60, "b" * 60], 2))


def test_keys_that_take_long_to_hash_lose_their_meaning() -> None:
    deep = b"\x80\x02}N" + b"2\x86" * 60 + b"K\x01s."  # a tuple of a tuple twice, of a tuple twice ...: 2**60 to hash
    back = read(deep)
    assert [type(key) for key in back] == [Inert]
    assert list(back.values()) == [1]
    assert list(read(pickle.dumps({"x" * 5000: 1, "x": 2}, 2)))[1] == "x"
    assert all(isinstance(key, Inert) for key in read(pickle.dumps({1: 1, (1, 2): 2, b"x" * 9: 3}, 2)))
