from __future__ import annotations

import base64
import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from rco.core.errors import InputError
from rco.reporting.figures import classification, openset, route, style

Rows = list[dict[str, Any]]


def teacher_rows(epochs: int = 40, drops: Sequence[int] = (20, 30)) -> Rows:
    return [
        {"epoch": e, "val_accuracy": 1 - 0.9 / e, "lr": 0.05 * 0.1 ** sum(e > d for d in drops)} for e in range(1, epochs + 1)
    ]


def stage_rows(anchors: Sequence[int], epochs: int) -> Rows:
    length = epochs // len(anchors)
    return [
        {
            "stage": k + 1,
            "anchor_epochs": [e],
            "first_epoch": k * length + 1,
            "last_epoch": (k + 1) * length,
            "anchor_accuracies": [1 - 1 / e],
        }
        for k, e in enumerate(anchors)
    ]


def student_rows(epochs: int) -> Rows:
    return [{"epoch": e, "stage": 1, "val_accuracy": 0.9 - 0.5 / e} for e in range(1, epochs + 1)]


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [drawn for drawn in ax.get_lines() if drawn.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def notes(ax: Axes) -> list[Annotation]:
    return [text for text in ax.texts if isinstance(text, Annotation)]


def cells(ax: Axes) -> dict[tuple[int, int], str]:
    """Printed cells by (row, column)."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}


def tick_labels(ax: Axes, axis: str) -> list[str]:
    return [text.get_text() for text in getattr(ax, f"get_{axis}ticklabels")()]


def visible_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that is drawn, with its place in pixels."""
    figure.canvas.draw()
    unseen = set()
    for axis in figure.findobj(Axis):
        assert isinstance(axis, Axis)
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        # Matplotlib keeps ticks beyond the limits and does not draw them.
        unseen |= {
            text
            for tick in axis.get_major_ticks()
            if not low - slack <= tick.get_loc() <= high + slack
            for text in tick.findobj(Text)
        }
    found = [text for text in figure.findobj(Text) if text.get_visible() and text not in unseen]
    # Of an annotation, the text without its arrow.
    return [(text.get_text(), Text.get_window_extent(text)) for text in found if text.get_text().strip()]


# --- the teacher's route --------------------------------------------------------------------------------------------------


def test_route_shows_history_checkpoints_anchors_and_learning_rate() -> None:
    rows, kept = teacher_rows(), [4, 8, 12, 16, 20, 30, 40]
    figure = route.route_figure(rows, kept, [(1, 4), (2, 20), (3, 40)])
    upper, lower = figure.axes
    accuracy = {row["epoch"]: 100 * row["val_accuracy"] for row in rows}
    for label, epochs in (("Teacher", list(accuracy)), ("Checkpoint", kept), ("Anchor (numbered by stage)", [4, 20, 40])):
        x, y = line(upper, label)
        assert x.tolist() == epochs
        assert y == pytest.approx([accuracy[e] for e in epochs])
    assert [(note.get_text(), note.xy[0]) for note in notes(upper)] == [("1", 4), ("2", 20), ("3", 40)]
    assert [note.xy[1] for note in notes(upper)] == pytest.approx([accuracy[4], accuracy[20], accuracy[40]])
    (rate,) = lower.get_lines()
    assert rate.get_ydata() == pytest.approx([row["lr"] for row in rows])
    assert lower.get_yscale() == "log"
    assert lower.get_yticks() == pytest.approx([0.0005, 0.005, 0.05])
    assert upper.get_ylabel() == "Validation accuracy (%)"
    assert lower.get_xlabel() == "Teacher epoch"
    assert legend(figure) == ["Teacher", "Checkpoint", "Anchor (numbered by stage)"]


@pytest.mark.parametrize(("low", "scale"), [(0.005, "linear"), (0.0049, "log"), (0.0, "linear")])
def test_learning_rate_is_logarithmic_beyond_a_factor_of_ten(low: float, scale: str) -> None:
    rows = [{"epoch": 1, "val_accuracy": 0.5, "lr": 0.05}, {"epoch": 2, "val_accuracy": 0.6, "lr": low}]
    assert route.route_figure(rows, [2], [(1, 2)]).axes[1].get_yscale() == scale


@pytest.mark.parametrize("lr", [{}, {"lr": None}])
def test_an_imported_route_has_no_learning_rate(lr: dict[str, None]) -> None:
    rows = [{"epoch": e, "val_accuracy": 0.5, **lr} for e in (10, 20)]
    figure = route.route_figure(rows, [10, 20], [(1, 20)])
    assert len(figure.axes) == 1
    assert figure.axes[0].get_xlabel() == "Teacher epoch"


def test_stages_that_share_an_anchor_are_all_numbered_in_order() -> None:
    upper = route.route_figure(teacher_rows(), [40], [(stage, 40) for stage in range(1, 12)]).axes[0]
    assert [note.get_text() for note in notes(upper)] == [str(stage) for stage in range(1, 12)]
    places = [note.get_position()[0] for note in notes(upper)]
    assert places == sorted(set(places))


@pytest.mark.parametrize(
    ("rows", "kept", "anchors", "parameter"),
    [
        ([], [], [], "history"),
        (teacher_rows(10), [4, 12], [], "checkpoints"),
        (teacher_rows(10), [4], [(1, 11)], "anchors"),
    ],
)
def test_route_refuses_what_is_not_in_the_history(
    rows: Rows, kept: list[int], anchors: list[tuple[int, int]], parameter: str
) -> None:
    with pytest.raises(InputError) as raised:
        route.route_figure(rows, kept, anchors)
    assert raised.value.parameter == parameter


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 100), max_size=9).map(sorted))
def test_numbers_keep_their_order_their_distance_and_inside(wanted: list[float]) -> None:
    places = route._spread(wanted, 10, 0, 100)
    assert (np.diff(places) >= 10 - 1e-9).all()
    assert ((places >= -1e-9) & (places <= 100 + 1e-9)).all()
    if (np.diff(wanted) >= 10).all():
        assert places == pytest.approx(wanted)


def test_numbers_that_touch_part_evenly() -> None:
    assert route._spread([50, 50, 80], 10, 0, 100) == pytest.approx([45, 55, 80])
    assert route._spread([99, 99], 10, 0, 100) == pytest.approx([90, 100])


# --- the student ----------------------------------------------------------------------------------------------------------


def test_student_shows_accuracy_anchors_and_boundaries() -> None:
    rows, stages = student_rows(80), stage_rows([4, 16, 20, 40], 80)
    figure = route.student_figure(rows, stages, 0.975)
    (ax,) = figure.axes
    x, y = line(ax, "Student")
    assert x.tolist() == list(range(1, 81))
    assert y == pytest.approx([100 * row["val_accuracy"] for row in rows])
    x, y = line(ax, "Anchor of the stage")
    np.testing.assert_allclose(x.reshape(4, 3)[:, :2], [[0.5, 20.5], [20.5, 40.5], [40.5, 60.5], [60.5, 80.5]])
    np.testing.assert_allclose(y.reshape(4, 3), [[100 - 100 / e] * 2 + [np.nan] for e in (4, 16, 20, 40)])
    assert line(ax, "Converged teacher")[1] == pytest.approx([97.5, 97.5])
    uprights = [np.asarray(drawn.get_xdata(), float) for drawn in ax.get_lines()]
    boundaries = [x[0] for x in uprights if len(x) == 2 and x[0] == x[1]]
    assert boundaries == [20.5, 40.5, 60.5]
    assert [note.get_text() for note in notes(ax)] == [f"stage {k}: anchor epoch {e}" for k, e in enumerate((4, 16, 20, 40), 1)]
    assert legend(figure) == ["Student", "Anchor of the stage", "Converged teacher"]
    assert ax.get_xlim() == (0.5, 80.5)


def test_what_is_not_known_of_a_student_is_left_out() -> None:
    stages = [{"stage": 1, "anchor_epochs": [40], "first_epoch": 1, "last_epoch": 1, "anchor_accuracies": [None]}]
    assert legend(route.student_figure(student_rows(1), stages)) == ["Student"]
    for rows, none in (([], stages), (student_rows(1), [])):
        with pytest.raises(InputError, match="empty"):
            route.student_figure(rows, none)


def test_stage_names_are_level_where_there_is_room_and_else_slanted() -> None:
    for anchors, slanted in (([4, 16, 20, 40], False), (range(4, 44, 4), True)):
        (ax,) = route.student_figure(student_rows(80), stage_rows(anchors, 80)).axes
        assert {note.get_rotation() > 0 for note in notes(ax)} == {slanted}


# --- hardness -------------------------------------------------------------------------------------------------------------


def outlines(ax: Axes) -> list[tuple[int, int]]:
    """(row, column) of the outlined cells."""
    return [(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches if isinstance(p, Rectangle)]


def test_hardness_shows_values_blanks_and_the_next_anchors() -> None:
    matrix: list[list[float | None]] = [[3.5, 3.25, 3.0], [0.25, 0.5, None], [float("nan"), 0.125, 0.75]]
    figure = route.hardness_figure(matrix, [4, 8, 12], [[8], [12]], ["initial", "after stage 1", "after stage 2"])
    ax = figure.axes[0]
    (image,) = ax.images
    shown = image.get_array()
    assert shown is not None
    np.testing.assert_array_equal(np.ma.filled(shown, -1), [[3.5, 3.25, 3.0], [0.25, 0.5, -1], [-1, 0.125, 0.75]])
    assert outlines(ax) == [(0, 1), (1, 2)]
    assert cells(ax) == {
        **{(0, 0): "3.50", (0, 1): "3.25", (0, 2): "3.00", (1, 0): "0.250", (1, 1): "0.500"},
        **{(2, 1): "0.125", (2, 2): "0.750"},
    }
    assert tick_labels(ax, "y") == ["initial", "after stage 1", "after stage 2"]
    assert sorted(tick_labels(ax, "x"), key=int) == ["4", "8", "12"]
    assert image.colorbar is not None
    assert image.colorbar.ax.get_ylabel() == "Hardness H(i, j) (nats)"
    assert legend(figure) == ["Next anchor"]


def test_hardness_of_a_long_route_labels_the_converged_teacher_and_prints_no_values() -> None:
    epochs = list(range(4, 241, 4))
    ax = route.hardness_figure(np.ones((11, 60)), epochs, [[]] * 11, [str(i) for i in range(11)]).axes[0]
    labels = dict(zip(ax.get_xticks(), tick_labels(ax, "x"), strict=True))
    assert labels[59] == "240"
    assert all(labels[j] == str(epochs[int(j)]) for j in labels)
    assert 10 <= len(labels) <= 20
    assert not ax.texts
    assert not outlines(ax)


def test_a_stage_with_several_anchors_shows_each() -> None:
    ax = route.hardness_figure(np.ones((2, 3)), [4, 8, 12], [[4, 12]], ["initial", "after stage 1"]).axes[0]
    assert sorted(outlines(ax)) == [(0, 0), (0, 2)]
    stage = {"stage": 1, "first_epoch": 1, "last_epoch": 80, "anchor_epochs": [4, 12], "anchor_accuracies": [0.5, 0.75]}
    (ax,) = route.student_figure(student_rows(80), [stage]).axes
    assert [text.get_text() for text in ax.texts] == ["stage 1: mean of 2 anchors, epochs 4 to 12"]
    _, levels = line(ax, "Anchor of the stage")
    np.testing.assert_array_equal(levels, [50, 50, np.nan, 75, 75, np.nan])


@pytest.mark.parametrize(("low", "logarithmic"), [(0.0, False), (0.05, False), (0.01, True)])
def test_hardness_of_many_magnitudes_gets_a_logarithmic_colour(low: float, logarithmic: bool) -> None:
    ax = route.hardness_figure([[low, 1.0]], [1, 2], [], ["initial"]).axes[0]
    assert isinstance(ax.images[0].norm, LogNorm) == logarithmic


@pytest.mark.parametrize(
    ("matrix", "epochs", "chosen", "labels", "parameter"),
    [
        ([[1.0, 2.0]], [4], [], ["initial"], "matrix"),
        ([[1.0]], [4], [], [], "matrix"),
        ([[1.0]], [4], [[8]], ["initial"], "anchors_chosen"),
        ([[1.0]], [4], [[4], [4]], ["initial"], "anchors_chosen"),
    ],
)
def test_hardness_refuses_what_does_not_fit(matrix: Any, epochs: Any, chosen: Any, labels: Any, parameter: str) -> None:
    with pytest.raises(InputError) as raised:
        route.hardness_figure(matrix, epochs, chosen, labels)
    assert raised.value.parameter == parameter


# --- confusion and reliability --------------------------------------------------------------------------------------------


def test_confusion_colours_shares_of_the_true_class_and_prints_counts() -> None:
    figure = classification.confusion_figure([[8, 2, 0], [1, 0, 3], [0, 0, 0]], ["cat", "dog", "$a$ $\\bad$"])
    ax = figure.axes[0]
    shown = ax.images[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(np.ma.filled(shown, -1), [[80, 20, 0], [25, 0, 75], [-1, -1, -1]])
    assert cells(ax) == {(0, 0): "8", (0, 1): "2", (1, 0): "1", (1, 2): "3"}
    assert tick_labels(ax, "x") == tick_labels(ax, "y") == ["cat", "dog", "$a$ $\\bad$"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted class", "True class")
    assert "57.1 %" in ax.get_title()
    figure.canvas.draw()  # a name that looks like mathematics is a name


@pytest.mark.parametrize(("classes", "labels"), [(100, 100), (1000, 112)])
def test_confusion_of_many_classes_labels_what_fits_and_prints_no_counts(classes: int, labels: int) -> None:
    ax = classification.confusion_figure(np.eye(classes), [f"class {k}" for k in range(classes)]).axes[0]
    assert not ax.texts
    assert len(tick_labels(ax, "x")) == labels
    assert all(name == f"class {place:.0f}" for place, name in zip(ax.get_xticks(), tick_labels(ax, "x"), strict=True))


def test_confusion_refuses_names_that_do_not_fit_and_survives_no_samples() -> None:
    with pytest.raises(InputError, match="2 classes"):
        classification.confusion_figure(np.eye(3), ["a", "b"])
    assert classification.confusion_figure(np.zeros((2, 2)), ["a", "b"]).axes[0].get_title() == "Confusion matrix"


def test_reliability_shows_accuracy_gap_and_samples() -> None:
    nothing = float("nan")
    figure = classification.reliability_figure([[nothing, 0.4, 0.6, 0.9], [nothing, 0.5, 0.6, 0.7], [0, 10, 10, 20]])
    upper, lower = figure.axes
    bars, gaps, counts = (
        [bar for bar in container if isinstance(bar, Rectangle)] for container in (*upper.containers, *lower.containers)
    )
    held = [(p.get_x(), p.get_width(), p.get_height()) for p in bars][1:]
    np.testing.assert_allclose(held, [(25, 25, 50), (50, 25, 60), (75, 25, 70)])
    np.testing.assert_allclose([p.get_y() + p.get_height() for p in gaps][1:], [40, 60, 90])
    assert [p.get_height() for p in counts] == [0, 10, 10, 20]
    assert "12.5 %" in figure.get_suptitle()  # (10 * 0.1 + 10 * 0 + 20 * 0.2) / 40
    assert set(legend(figure)) == {"Accuracy", "Gap to the confidence", "Calibrated"}


# --- every figure ---------------------------------------------------------------------------------------------------------

FEW, MANY = [4, 16, 20, 40], [4, 8, 12, 16, 24, 60, 148, 156, 180, 240]
STATES = ["initial", *(f"after stage {k}" for k in range(1, 11))]
NAMES = [f"animal or thing {k}" for k in range(100)]
FIGURES: dict[str, Callable[[], Figure]] = {
    "route, few": lambda: route.route_figure(teacher_rows(), list(range(4, 41, 4)), list(enumerate(FEW, 1))),
    "route, many": lambda: route.route_figure(
        teacher_rows(240, (150, 180, 210)), list(range(4, 241, 4)), list(enumerate(MANY, 1))
    ),
    "route, crowded": lambda: route.route_figure(teacher_rows(240), range(1, 11), [(e, e) for e in range(1, 11)]),
    "student, few": lambda: route.student_figure(student_rows(80), stage_rows(FEW, 80), 0.97),
    "student, many": lambda: route.student_figure(student_rows(240), stage_rows(MANY, 240), 0.97),
    "hardness, few": lambda: route.hardness_figure(
        np.geomspace(0.01, 9, 50).reshape(5, 10), range(4, 41, 4), [[e] for e in FEW], STATES[:5]
    ),
    "hardness, many": lambda: route.hardness_figure(
        np.linspace(0, 9, 660).reshape(11, 60), range(4, 241, 4), [[e] for e in MANY], STATES
    ),
    "confusion, few": lambda: classification.confusion_figure(np.full((10, 10), 1000), [str(k) for k in range(10)]),
    "confusion, many": lambda: classification.confusion_figure(np.eye(100), NAMES),
    "reliability": lambda: classification.reliability_figure([[0.3, 0.9], [0.4, 0.7], [5, 20000]]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_touches_another_or_leaves_the_picture(name: str) -> None:
    figure = FIGURES[name]()
    texts = visible_texts(figure)
    assert len(texts) > 5
    picture = figure.bbox
    for text, box in texts:
        inside = box.x0 >= picture.x0 - 1 and box.x1 <= picture.x1 + 1 and box.y0 >= picture.y0 - 1 and box.y1 <= picture.y1 + 1
        assert inside, f"{text!r} leaves the picture"
    if name == "student, many":  # names slanted side by side: their upright boxes overlap, they do not
        texts = [(text, box) for text, box in texts if not text.startswith("stage")]
    for i, (first, a) in enumerate(texts):
        for second, b in texts[i + 1 :]:
            apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
            assert apart, f"{first!r} touches {second!r}"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_becomes_a_whole_png(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"an older picture")
    figure = FIGURES[name]()
    style.save(figure, path, dpi=50)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == tuple(int(50 * inches) for inches in figure.get_size_inches())
        # A page of one colour would be a valid PNG as well.
        assert len(set(image.convert("L").getdata())) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_a_picture_that_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"an older picture")
    figure = Figure()
    figure.text(0.5, 0.5, "$\\unbalanced{$")
    with pytest.raises(ValueError, match="unbalanced"):
        style.save(figure, path)
    assert path.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [path]


def test_data_uris_hold_the_picture() -> None:
    figure = FIGURES["reliability"]()
    head, body = style.data_uri(figure, "png", dpi=40).split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert image.format == "PNG"
    head, body = style.data_uri(figure).split(",")
    assert head == "data:image/svg+xml;base64"
    assert ET.fromstring(base64.b64decode(body)).tag == "{http://www.w3.org/2000/svg}svg"


def test_lines_that_share_axes_differ_in_colour() -> None:
    for name in ("route, few", "student, few"):
        lines = [drawn for drawn in FIGURES[name]().axes[0].get_lines() if not str(drawn.get_label()).startswith("_")]
        looks = {(to_hex(drawn.get_color()), drawn.get_marker(), drawn.get_linestyle()) for drawn in lines}
        assert len(looks) == len(lines) == 3


def test_drawing_needs_neither_pyplot_nor_torch_nor_a_screen() -> None:
    code = """
import sys
from rco.reporting.figures.classification import confusion_figure
from rco.reporting.figures.style import data_uri
data_uri(confusion_figure([[1]], ["a"]), "png")
sys.exit(any(name in sys.modules for name in ("torch", "matplotlib.pyplot", "tkinter")))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestOpenSet:
    @pytest.fixture(scope="class")
    def measured(self) -> dict[str, Any]:
        from rco.evaluation.openset import measure

        rng = np.random.default_rng(0)
        labels = np.repeat([7, 8, 9], 40)
        centres = rng.normal(size=(10, 8))
        return {
            role: measure(centres[labels] + spread * rng.normal(size=(120, 8)), labels)
            for role, spread in (("teacher", 0.5), ("student", 1.5))
        }

    def test_curves_are_the_figures(self, measured: dict[str, Any]) -> None:
        figure = openset.open_set_figure(measured)
        left, right = figure.axes
        far, tar = line(left, "Student")
        assert far.tolist() == measured["student"]["roc"]["far"]
        assert (tar / 100).tolist() == pytest.approx(measured["student"]["roc"]["tar"])
        teacher, student = (container.lines[0] for container in right.containers)
        for drawn, role in ((teacher, "teacher"), (student, "student")):
            assert drawn.get_xdata().tolist() == [1, 2, 5, 10, 20, 50]
            assert (drawn.get_ydata() / 100).tolist() == pytest.approx(list(measured[role]["rank1"].values()))
        assert left.get_xscale() == right.get_xscale() == "log"
        assert legend(figure) == ["Teacher", "Student"]
