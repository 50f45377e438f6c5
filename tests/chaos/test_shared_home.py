"""One .rco for several runs: two at once work side by side, and no secret of any run's environment is left in it or said."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.local.run import RunFailedError, run
from tests import zygote
from tests.local_runs import flags, statuses
from tests.servers import free_port
from tests.unit.test_data import folder_of

TINY = {
    **{"teacher": "digits-mlp", "student": "digits-mlp", "teacher_epochs": 2, "teacher_schedule": "constant", "epochs": 2},
    **{"checkpoint_every": 1, "schedule": "constant", "strategy": "equal-interval", "n_anchors": 1, "threads": 1, "workers": 0},
    **{"registered_model": ""},
}
CANARIES = {
    name: f"canary/{name.lower()}+9f3"
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME"),
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    )
}
IN_ADDRESS = "canary-in/an-address-7c1"


class Home:
    """The folder, and all that runs in it have said."""

    def __init__(self, root: Path) -> None:
        self.root, self.said = root, list[str]()
        self.summaries: dict[float, dict[str, Any]] = {}

    def run(self, **parameters: Any) -> dict[str, Any]:
        try:
            return run({**TINY, **parameters}, self.root, show=self.said.append)
        except RunFailedError as error:
            self.said.append(str(error))
            raise


def learnt(summary: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the student, without the time that it takes."""
    return {name: value for name, value in summary["student"].items() if not name.startswith("latency")}


pytestmark = pytest.mark.usefixtures("_zygote")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """After two runs at once that share their teacher, in a new folder."""
    place = Home(tmp_path_factory.mktemp("home"))
    arguments = ["run", *flags(TINY), "--home", str(place.root)]
    processes = [zygote.cli(*arguments, f"--tau={tau}", **CANARIES) for tau in (2.0, 3.0)]
    place.said += [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(place.said)
    for file in place.root.glob("runs/*/report/summary.json"):
        request = json.loads((file.parent.parent / "request.json").read_text())
        place.summaries[float(request["parameters"]["tau"])] = json.loads(file.read_text())
    return place


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def test_two_runs_at_once_do_not_mix(home: Home) -> None:
    import mlflow

    assert set(home.summaries) == {2.0, 3.0}, "\n".join(home.said)
    client = mlflow.MlflowClient(f"sqlite:///{home.root}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "rco")
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    for tau, summary in home.summaries.items():
        mine = {r.data.tags.get("rco.key"): r for r in runs if r.data.tags["rco.pipeline_run"] == summary["pipeline_run"]}
        assert set(mine) == {None, "teacher", "student"}
        assert mine[None].data.params["tau"] == mine["student"].data.params["objective.tau"] == str(tau)
        for key in ("teacher", "student"):
            history = client.get_metric_history(mine[key].info.run_id, "val_accuracy")
            assert [m.step for m in history] == [1, 2], "every epoch once"
    assert home.summaries[2.0]["teacher"]["val_accuracy"] == home.summaries[3.0]["teacher"]["val_accuracy"]
    assert (home.root / "last-run" / "summary.json").is_file()
    assert not any(path.name.endswith(".tmp") for path in home.root.rglob("*"))


def test_a_later_run_finds_what_both_have_left(home: Home) -> None:
    before = len(home.said)
    assert learnt(home.run(tau=2.0)) == learnt(home.summaries[2.0])
    # Of two teachers that were trained at once, the cache has the one that was finished last, with what followed from it.
    assert any("train-teacher" in line for line in home.said[before:] if "taken from the cache" in line)


def test_runs_that_fail_in_every_way(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the check, in a task, at the store, at the tracking server; with passwords in addresses, too."""
    data = folder_of(tmp_path / "animals", {"cat": 12, "dog": 12})
    (data / "dog" / "011.png").write_bytes(b"no image")
    process = zygote.cli("run", "--home", str(home.root), *flags({**TINY, "dataset": str(data)}), **CANARIES)
    home.said.append(process.communicate())
    assert process.returncode == 2, home.said[-1]
    assert "Traceback" not in home.said[-1]
    (paragraph,) = (line for line in home.said[-1].splitlines() if line.startswith("rco: "))
    assert "dog/011.png" in paragraph
    assert "not a readable image" in paragraph
    assert "RUNNING" not in statuses(home.root)
    with pytest.raises(RunFailedError, match="teacher"):
        home.run(teacher="no-such-model")
    in_address = quote(IN_ADDRESS, safe="")
    closed = f"{in_address}:{in_address}@127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{closed}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(RunFailedError, match="cannot be reached"):
        home.run(dataset="s3://bucket/animals")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{closed}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = len(home.said)
    assert learnt(home.run(tau=2.0)) == learnt(home.summaries[2.0]), "tracking is not needed to work"
    assert any("was not delivered to MLflow" in line for line in home.said[before:])
    for parameter in ("dataset", "route"):
        arguments = ["run", f"--{parameter}", f"s3://me:{IN_ADDRESS}@bucket/x", "--home", str(home.root)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert "holds credentials" in done.output
        home.said.append(done.output)


def test_what_is_compiled_says_no_secret(home: Home, tmp_path: Path) -> None:
    out = home.root / "compiled"
    done = CliRunner().invoke(
        main,
        [
            "compile",
            "--output",
            str(out / "rco.yaml"),
            "--comparison",
            str(out / "comparison.yaml"),
            "--branches",
            "kd,scratch",
        ],
    )
    assert done.exit_code == 0, done.output
    home.said.append(done.output)
    assert (out / "rco.yaml").stat().st_size > 0


def test_no_secret_is_left_anywhere_or_said(home: Home) -> None:
    """Last: of all that the tests above have run."""
    secrets = [*CANARIES.values(), IN_ADDRESS]
    secrets += [quote(secret, safe="") for secret in secrets] + [base64.b64encode(s.encode()).decode() for s in secrets]
    files = [path for path in home.root.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert any(path.name == "pipeline.log" for path in files)
    for secret in secrets:
        assert not [line for line in home.said if secret in line]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
