"""Take the pictures of MLflow that the documentation shows: `python -m tests.browser.screenshots HOME FOLDER`.

HOME is the state of local runs (`--home` of `rco`) with a comparison in it. Writes mlflow-experiment.png,
mlflow-compare.png and mlflow-models.png.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests import servers
from tests.browser import truth, ui


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 with one line on stderr if there is nothing to take a picture of."""
    parser = argparse.ArgumentParser(description="Pictures of MLflow for the documentation.")
    parser.add_argument("home", type=Path, help="state of local runs with a comparison in it (--home of rco)")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    told = parser.parse_args(arguments)
    database = told.home / "mlflow.db"
    if not database.is_file():
        print(f"{told.home} holds no MLflow database; make a comparison first: rco compare --home {told.home}", file=sys.stderr)
        return 2
    told.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, servers.mlflow_server(Path(scratch), database=database) as address:
        try:
            held = truth.read(address)
        except truth.NoComparisonError as error:
            print(error, file=sys.stderr)
            return 2
        with ui.chromium() as page:
            take(ui.Mlflow(page, address), held, told.folder)
    return 0


def take(mlflow: ui.Mlflow, held: truth.Comparison, folder: Path) -> None:
    """Walk through MLflow as the README tells it, and take a picture of each place."""
    mlflow.open_experiment(held.experiment)
    mlflow.search(held.students, matching=len(held.runs) + 1)
    mlflow.unfold(held.parent)
    mlflow.choose_columns(
        show=["test_accuracy", "val_accuracy", "congruence_kl", "rco.branch", "rco.seed"],
        hide=["Dataset", "Source", "Models"],
    )
    picture(mlflow, folder / "mlflow-experiment.png")
    mlflow.compare(list(held.runs))
    mlflow.open_metric("val_accuracy")
    mlflow.lines(count=len(held.runs))
    picture(mlflow, folder / "mlflow-compare.png")
    mlflow.open_experiment(held.experiment)
    mlflow.open_models()
    mlflow.choose_columns(hide=["Logged from", "Source run", "Registered models", "Dataset", "Status"])
    picture(mlflow, folder / "mlflow-models.png")


def picture(mlflow: ui.Mlflow, file: Path) -> None:
    """A picture of the page."""
    mlflow.settle()
    mlflow.page.screenshot(path=file)
    print(f"{file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    sys.exit(main())
