"""What the golden comparison finds, and what it does not call a difference."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.golden import driver, facts
from tests.golden.compare import Difference, Entry, compare, proposed, read_meant

BASE: facts.Facts = {
    "run/weights/student/tensors": "aa11",
    "run/mlflow/rco/student/metrics/loss": "step 1: 2.5\nstep 2: 1.5",
    "run/mlflow/rco/student/status": "FINISHED",
    "help/rco run/options/--tau": "--tau FLOAT relaxation temperature [4.0]",
    "help/rco run/options in order": ["--tau", "--lam"],
    "commands/rco run --tau 0/text": "rco: tau = 0.0: must be a finite number above 0. Give a number above 0",
    "commands/rco run --lr 0/text": "rco: lr = 0.0: must be a finite number above 0. Give a number above 0",
}


def entry(**values: Any) -> Entry:
    return Entry.of({"reason": "plain English", **values})


def test_equal_sides_differ_in_nothing() -> None:
    account = compare(BASE, dict(BASE))
    assert account.good
    assert account.counted == {"run": 3, "help": 2, "commands": 2}


@pytest.mark.parametrize(
    ("name", "new", "shown"),
    [
        ("run/weights/student/tensors", "bb22", "+bb22"),
        ("run/mlflow/rco/student/metrics/loss", "step 1: 2.5\nstep 2: 1.4999999", "+step 2: 1.4999999"),
        ("run/mlflow/rco/student/status", None, "gone; it was: FINISHED"),
        ("help/rco run/options/--tau", "--tau FLOAT temperature [4.0]", "+--tau FLOAT temperature [4.0]"),
        ("help/rco run/options in order", ["--lam", "--tau"], "+--lam"),
        ("help/rco run/options/--plugin", "--plugin NAME", "new: --plugin NAME"),
    ],
)
def test_every_kind_of_difference_is_found_and_shown(name: str, new: Any, shown: str) -> None:
    tree = {key: value for key, value in {**BASE, name: new}.items() if value is not None}
    account = compare(BASE, tree)
    assert [difference.name for difference in account.unmeant] == [name]
    assert not account.good
    assert shown in account.shown()


def test_a_new_option_does_not_disturb_the_order_of_the_others() -> None:
    assert compare(BASE, {**BASE, "help/rco run/options in order": ["--tau", "--plugin", "--lam"]}).good


def test_one_entry_covers_a_sentence_wherever_it_is_said() -> None:
    tree: facts.Facts = {
        name: value.replace("above 0.", "greater than 0.") if isinstance(value, str) else value for name, value in BASE.items()
    }
    sentence = entry(where="commands/*", old="finite number above 0.", new="finite number greater than 0.")
    account = compare(BASE, tree, [sentence])
    assert account.good
    assert len(account.meant) == 2
    # What else changes in such a text is not covered, and is what is shown.
    tree["commands/rco run --lr 0/text"] = "rco: lr = 0: must be a finite number greater than 0. Give a number above 0"
    account = compare(BASE, tree, [sentence])
    assert [d.name for d in account.unmeant] == ["commands/rco run --lr 0/text"]
    assert "-rco: lr = 0.0: must be a finite number greater than 0." in account.shown()


def test_several_entries_explain_one_text() -> None:
    name = "commands/rco run --tau 0/text"
    tree = {**BASE, name: "rco: tau = 0.0: is not positive. Give a positive number"}
    entries = [
        entry(where="commands/*", old="must be a finite number above 0.", new="is not positive."),
        entry(where=["other", name], old="Give a number above 0", new="Give a positive number"),
    ]
    assert compare(BASE, tree, entries).good
    assert not compare(BASE, tree, entries[:1]).good


def test_additions_removals_and_other_values_can_be_meant() -> None:
    tree = {**BASE, "help/rco run/options/--plugin": "--plugin NAME", "run/weights/student/tensors": "cc33"}
    del tree["run/mlflow/rco/student/status"]
    entries = [
        entry(where="help/*--plugin", added=True),
        entry(where="run/weights/*", changed=True),
        entry(where="run/mlflow/*/status", removed=True),
    ]
    assert compare(BASE, tree, entries).good
    for left in entries:
        assert not compare(BASE, tree, [e for e in entries if e is not left]).good
    # An addition is not a licence to change, nor to remove.
    assert not compare(BASE, tree, [entry(where="*", added=True)]).good


def test_facts_that_are_found_elsewhere_are_still_compared() -> None:
    moved = {name.replace("run/mlflow/rco/student", "run/mlflow/rco/rco seed 0"): value for name, value in BASE.items()}
    elsewhere = entry(where="run/mlflow/rco/student/", now_at="run/mlflow/rco/rco seed 0/")
    assert compare(BASE, moved, [elsewhere]).good
    moved["run/mlflow/rco/rco seed 0/status"] = "FAILED"
    assert [d.name for d in compare(BASE, moved, [elsewhere]).unmeant] == ["run/mlflow/rco/rco seed 0/status"]


def test_an_entry_that_explains_nothing_is_stale_where_it_could() -> None:
    stale = entry(where="commands/*", old="above 0", new="over 0")
    account = compare(BASE, dict(BASE), [stale])
    assert account.stale == [stale]
    assert not account.good
    assert "stale: the entry for commands/*" in account.shown()
    only_help = {name: value for name, value in BASE.items() if name.startswith("help/")}
    assert compare(only_help, dict(only_help), [stale]).good


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"where": "a", "added": True}, "gives no reason"),
        ({"where": "a", "old": "x", "reason": "r"}, "needs one of"),
        ({"where": "a", "old": "", "new": "y", "reason": "r"}, "needs one of"),
        ({"where": "a", "added": True, "changed": True, "reason": "r"}, "needs one of"),
        ({"added": True, "reason": "r"}, "does not say where"),
        ({"where": "a", "add": True, "reason": "r"}, "is not an entry"),
        ("a", "is not an entry"),
    ],
)
def test_entries_that_say_nothing_are_refused(values: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Entry.of(values)


def test_the_entries_of_the_project_can_be_read() -> None:
    read_meant(Path(__file__).parents[1] / "golden" / "meant.yaml")


def test_proposed_entries_explain_what_they_were_made_from() -> None:
    tree: facts.Facts = {
        name: value.replace("must be a finite number above 0.", "is not greater than 0.") if isinstance(value, str) else value
        for name, value in BASE.items()
    }
    tree["run/mlflow/rco/student/metrics/loss"] = "step 1: 2.5\nstep 2: 1.5\nstep 3: 1.0"
    tree["help/rco run/options in order"] = ["--lam", "--tau"]
    tree["new"] = "value"
    del tree["run/mlflow/rco/student/status"]
    found = compare(BASE, tree).unmeant
    assert len(found) == 6
    written = yaml.safe_load(proposed(found))
    # The same words in two texts are one entry.
    assert len(written) == 5
    entries = [Entry.of({**values, "reason": "plain English"}) for values in written]
    account = compare(BASE, tree, entries)
    assert account.good, account.shown()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a b c", "a c"),
        ("a\nb\nc", "a\nc"),
        ("a\nc", "a\nb\nc"),
        ("b\nc", "a\nb\nc"),
        ("a\nb", "b"),
        ("x\nx\ny", "x\nz\ny"),
        ("", "new"),
        ("", ""),
        ("aa aa", "aa bb"),
    ],
)
def test_proposals_hold_for_texts_of_all_shapes(old: str, new: str) -> None:
    if old == new:
        assert compare({"a": old}, {"a": new}).good
        return
    difference = Difference("a", old, new)
    written = yaml.safe_load(proposed([difference]))
    entries = [Entry.of({**values, "reason": "r"}) for values in written]
    assert compare({"a": old}, {"a": new}, entries).good, written


def test_text_is_compared_without_ids_times_and_places() -> None:
    text = (
        "report /tmp/x/work/.rco/last-run of local-20260102-030405-abcdef\nrun 0123456789abcdef0123456789abcdef, "
        "models:/m-0123456789abcdef0123456789abcdef, sha256 " + "ab" * 32 + ", image rco-python:0123456789ab"
    )
    assert facts.normalised(text, {"/tmp/x": "<x>", "/tmp/x/work": "<work>"}) == (
        "report <work>/.rco/last-run of <pipeline run>\nrun <run id>, models:/<model id>, sha256 "
        + "ab" * 32
        + ", image rco-python:<content>"
    )


def test_clocked_columns_are_left_out_and_others_stay() -> None:
    table = "|  | val. | ms (cpu, 1 image) |\n| --- | --- | --- |\n| teacher | 99.31 % | 1.05 |\n\n| a | 1.05 |"
    assert facts.without_clocked_columns(table).splitlines()[2:] == ["| teacher | 99.31 % | <measured> |", "", "| a | 1.05 |"]
    drawn = "┏━━┳━━┓\n┃ a    ┃ ms (cpu) ┃\n┡━━╇━━┩\n│ 10   │ 1.05     │\n└──┴──┘\n  epoch 1/2, 300 images/s\ndone"
    assert facts.printed(drawn) == "| a | ms (cpu) |\n| 10 | <measured> |\ndone"


def test_columns_of_seconds_are_left_out_of_tables_and_csv() -> None:
    table = "| branch | epochs | train s | anchors |\n| --- | --- | --- | --- |\n| kd | 4 | 3.8 | 40 |"
    assert facts.without_clocked_columns(table).endswith("| kd | 4 | <measured> | 40 |")
    assert facts.rows('branch,train_seconds,anchors\nkd,3.8,"20,40"\n') == "branch,anchors\nkd,20,40"


def test_the_order_of_tasks_that_do_not_wait_for_each_other_is_no_difference() -> None:
    one = "train-teacher\n  10 classes\ninit-students: unchanged\nselect-anchors-2\nselect-anchors: unchanged\n"
    two = "init-students-3: unchanged\nselect-anchors\nselect-anchors-2: unchanged\ntrain-teacher\n  10 classes\n"
    assert facts.progress(one) == facts.progress(two)
    assert facts.progress(one) != facts.progress(one.replace("train-teacher", "train-teacher: unchanged"))


def test_summaries_are_compared_leaf_by_leaf_without_latencies() -> None:
    summary = {"student": {"accuracy": 0.5, "latency_ms": 1.0}, "stages": [{"epoch": 4}], "open": []}
    assert facts.flattened(summary, "s") == {"s/student/accuracy": "0.5", "s/stages/0/epoch": "4", "s/open": "[]"}


def _safetensors(path: Path, numbers: list[float], metadata: dict[str, str]) -> Path:
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    about = {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": metadata, "w": about}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_a_digest_of_tensors_sees_every_number_and_no_metadata(tmp_path: Path) -> None:
    first = _safetensors(tmp_path / "a", [1.0, 2.0], {"version": "1"})
    second = _safetensors(tmp_path / "b", [1.0, 2.0], {"version": "2.0"})
    third = _safetensors(tmp_path / "c", [1.0, 2.0000002], {"version": "1"})
    assert facts.tensors_digest(first) == facts.tensors_digest(second)
    assert facts.tensors_digest(first) != facts.tensors_digest(third)
    assert facts.file_digest(first) != facts.file_digest(second)


def test_help_is_taken_apart() -> None:
    text = (
        "Usage: rco run [OPTIONS]\n\n  Run it.\n\n  Twice.\n\nOptions:\n  --recipe NAME|FILE   parameter file\n"
        "  --download / --no-download\n                       let torchvision download\n  -h, --help           Show this.\n"
    )
    assert driver.help_facts(text) == {
        "usage": "Usage: rco run [OPTIONS]",
        "text": "Run it.\n\nTwice.",
        "options/--recipe": "--recipe NAME|FILE parameter file",
        "options/--download": "--download / --no-download let torchvision download",
        "options/--help": "-h, --help Show this.",
        "options in order": ["--recipe", "--download", "--help"],
    }
