"""Commands for a student that is done: export it, ask it, serve it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import find_modules_here, home_option
from rco.core.errors import InputError, choice
from rco.exporting.config import FORMATS, OF_ONNX

if TYPE_CHECKING:
    from rco.exporting.export import Images, Row
    from rco.exporting.shipped import Shipped

model_option = click.option(
    "--model", default="", metavar="MODULE:FACTORY", help="what its network is, if that is code of yours"
)


@click.command()
@click.argument("student", default="")
@click.option("--format", "formats", default="onnx,pt2", show_default=True, metavar="A,B,...", help="from: onnx, pt2, int8")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("export"), show_default=True, help="folder for the files"
)
@click.option("--probabilities", is_flag=True, help="put out probabilities  [logits]")
@click.option(
    "--images", multiple=True, metavar="PATH", help="images to compare on  [the validation part of its data, in --home]"
)
@model_option
@home_option
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def export(
    student: str,
    formats: str,
    output: Path,
    probabilities: bool,
    images: tuple[str, ...],
    model: str,
    home: Path,
    as_json: bool,
) -> None:
    """Export a student: ONNX, torch.export's archive, ONNX in 8 bits.

    STUDENT is a run of this machine, a folder, an s3:// address or models:/rco-student@champion; without one the last run's.
    Pixels in 0..1 go in, with an open batch size; normalisation is inside. What is written is compared with PyTorch on real
    images, and not kept if it answers otherwise. ONNX needs: pip install 'rco[export]'.
    """
    wanted = [name.strip() for name in formats.split(",") if name.strip()]
    for name in wanted:
        choice("format", name, FORMATS)
    if not wanted:
        raise InputError("format", formats, "is empty", f"Choose from: {', '.join(FORMATS)}")
    if set(OF_ONNX) & set(wanted):
        from rco.exporting.formats import require_onnx

        require_onnx()
    find_modules_here()
    from rco.exporting.export import export as write
    from rco.exporting.shipped import shipped

    with shipped(student, home, model=model) as found:
        compared = _images(found, images, home)
        rows = write(found, wanted, output, compared, probabilities=probabilities)
        if as_json:
            click.echo(json.dumps([vars(row) for row in rows], indent=2))
            return
        _show(found, rows, compared)


def _images(student: Shipped, given: tuple[str, ...], home: Path) -> Images:
    from rco.exporting.export import images_of, prepared_images
    from rco.exporting.predict import image_paths

    if given:
        return images_of(student, image_paths(given))
    if (found := prepared_images(student, home)) is not None:
        return found
    raise InputError(
        "images",
        "",
        f"are needed to compare on: the data that {student.origin} was trained on is not in {home}",
        "Add --images FOLDER",
    )


def _show(student: Shipped, rows: list[Row], images: Images) -> None:
    from pipelines.display import print_rows

    labelled = images.labels is not None
    heads = ("format", "file", "size", "ms (cpu, 1 image)", "difference", "accuracy" if labelled else "same class")
    table = [
        (
            r.format,
            r.path,
            f"{r.size:,}",
            f"{r.latency_ms:.3f}",
            f"{r.difference:.1e}" if r.path else "",
            f"{100 * r.accuracy:.2f} %",
        )
        for r in rows
    ]
    if teacher := student.measured.get("teacher"):
        latency = teacher.get("latency_ms")
        table.append(("teacher", teacher["model"], "", f"{latency:.3f}" if latency else "", "", ""))
    print_rows(heads, table)
    click.echo(f"{student.model} of {student.origin}, compared with PyTorch on {images.where}")


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--student", default="", metavar="WHERE", help="as for rco export, or an .onnx file  [the last run's]")
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="classes to name")
@click.option("--column", default="path", show_default=True, help="of a CSV file: the column with the paths")
@model_option
@home_option
@click.option("--json", "as_json", is_flag=True, help="print one JSON document an image")
def predict(images: tuple[str, ...], student: str, top: int, column: str, model: str, home: Path, as_json: bool) -> None:
    """Ask a student about images: files, folders, or CSV files of paths.

    They are prepared as in training. An image that cannot be read is said, ends nothing, and makes the exit status 1.
    """
    from rco.exporting.predict import image_paths, predictor

    find_modules_here()
    paths = image_paths(images, column)
    failed = False
    with predictor(student, home, model=model) as asked:
        for answer in asked.ask(paths, top):
            failed = failed or bool(answer.problem)
            if as_json:
                classes = [{"class": name, "probability": value} for name, value in answer.classes]
                told: dict[str, Any] = {
                    "path": answer.path,
                    **({"error": answer.problem} if answer.problem else {"classes": classes}),
                }
                click.echo(json.dumps(told))
            elif answer.problem:
                click.echo(f"rco: {answer.problem}", err=True)
            else:
                click.echo(f"{answer.path}  " + "  ".join(f"{name} {100 * value:.1f} %" for name, value in answer.classes))
    sys.exit(1 if failed else 0)


@click.command()
@click.argument("uri", default="models:/rco-student@champion")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5001, show_default=True)
@home_option
def serve(uri: str, host: str, port: int, home: Path) -> None:
    """Serve a registered student with MLflow's own server, in this environment.

    It answers POST /invocations with {"inputs": [...]} of pixels in 0..1.
    """
    from rco.tracking.moved import database_uri

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        if not (home / "mlflow.db").is_file():
            raise InputError("home", str(home), "has no MLflow database", "Set MLFLOW_TRACKING_URI, or start a run here")
        os.environ["MLFLOW_TRACKING_URI"] = database_uri(home.resolve())
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    os.execv(sys.executable, [*command, "--host", host, "--port", str(port)])
