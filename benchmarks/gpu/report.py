"""report.md: what the parts have written, in tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import table

from benchmarks.gpu.common import RECIPE, REPORT, STEPS, STUDENTS, TESTS, Part, finished


def write(part: Part, ended: Mapping[str, str]) -> str:
    """Write the report; returns it.

    Args:
        ended: how each part has ended, in words.
    """
    sections = [
        f"# What was measured on {'a GPU' if part.on_gpu else 'a CPU: a trial of the benchmark, no result'}",
        *(f"- {name}: {words}" for name, words in ended.items()),
        *_checks(part.saved(TESTS)),
        *_steps(part.saved(STEPS)),
        *_recipe(part.saved(RECIPE)),
        *_students(part.out / STUDENTS),
    ]
    text = "\n".join(sections) + "\n"
    (part.out / REPORT).write_text(text)
    return text


def _machine(document: Mapping[str, Any]) -> str:
    about = document["machine"]
    return f"{about['processor']}, {about['cores']} cores, PyTorch {about['torch']}, Python {about['python']}"


def _checks(document: Mapping[str, Any] | None) -> list[str]:
    if document is None:
        return []
    rows = [[row["check"], row["outcome"], str(row["seen"]), f"{row['seconds']:.1f}"] for row in document["checks"]]
    return ["", "## Checks", "", _machine(document), "", table(["check", "outcome", "seen", "s"], rows)]


def _steps(document: Mapping[str, Any] | None) -> list[str]:
    if document is None:
        return []
    lines = ["", "## One distillation step", "", _machine(document)]
    heads = ["contender", "images/s", "lowest to highest", "x resident loop", "% of matrix rate", "% of roofline", "ready, s"]
    for pair in document["pairs"]:
        rates, bound = pair["rates"], pair["bounds"]
        lines += [
            "",
            f"### {pair['pair']}",
            "",
            f"{pair['images_an_epoch']:,} images an epoch ({pair['images']}), {pair['precision']}; measured: matrix products "
            f"{rates['flop_per_s'] / 1e12:.4g} TFLOP/s, copies {rates['bytes_per_s'] / 1e9:.4g} GB/s; "
            f"{bound['flop_per_image'] / 1e9:.4g} GFLOP an image, so at most {bound['matrix_rate']:,.0f} images/s by "
            f"arithmetic and {bound['roofline']:,.0f} by the roofline.",
            "",
            table(heads, [_cells(row) for row in pair["rows"]]),
        ]
        best = max((r["over_resident"] for r in pair["rows"] if _is_ours(r)), default=None)
        if best is not None:
            met = "met" if best >= document["aim"] else "missed"
            lines += ["", f"The aim is {document['aim']} times the resident plain loop: {met} ({best:.2f})."]
    return lines


def _is_ours(row: Mapping[str, Any]) -> bool:
    """Ours with a live teacher, as the plain loop has one."""
    return "skipped" not in row and row["contender"].startswith("ours") and "kept" not in row["contender"]


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["contender"], f"not measured: {row['skipped']}", "", "", "", "", ""]
    parts = (f"{100 * row[key]:.1f}" if key in row else "" for key in ("of_matrix_rate", "of_roofline"))
    span = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
    speed, ratio = f"{row['images_per_second']:,.0f}", f"{row['over_resident']:.2f}"
    return [row["contender"], speed, span, ratio, *parts, f"{row['seconds_until_ready']:.1f}"]


def _recipe(document: Mapping[str, Any] | None) -> list[str]:
    if document is None:
        return []
    rows = [
        [name, "not extrapolated: the time was spent", "", ""]
        if "skipped" in p
        else [name, f"{p['median_epoch_seconds']:.3g}", str(p["epochs"]), f"{p['extrapolated_seconds'] / 60:.3g}"]
        for name, p in document["parts"].items()
    ]
    lines = ["", f"## {document['recipe']}, extrapolated", "", _machine(document)]
    lines += ["", f"Not a whole run: {document['extrapolated']}; {document['images']}; without pipeline and tracking."]
    lines += ["", table(["part", "s an epoch (measured)", "epochs", "minutes (extrapolated)"], rows)]
    if "extrapolated_seconds" in document:
        lines += ["", f"Together {document['extrapolated_seconds'] / 60:.3g} minutes, extrapolated."]
    return lines


def _students(path: Path) -> list[str]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in finished(path):
        groups[line["plan"], line["branch"]].append(line)
    if not groups:
        return []
    rows = []
    for (plan, branch), lines in groups.items():
        accuracy = [100 * line["figures"]["test_accuracy"] for line in lines]
        spread = f" ± {statistics.stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        rows.append([plan, branch, str(len(lines)), f"{statistics.mean(accuracy):.2f}{spread}"])
    heads = ["plan", "branch", "students", "test accuracy, % (mean ± standard deviation)"]
    return ["", "## Students so far, of all machines", "", table(heads, rows)]
