"""Starts runs of one tree and reads what they leave behind: what is printed, summaries, weights, and MLflow.

All scenarios of a side share one folder and its state, as they would for a user: the teacher is trained once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.golden.facts import TIMED, Facts, file_digest, flattened, normalised, printed, progress, rows, tensors_digest

DRIVER = Path(__file__).with_name("driver.py")
QUESTIONS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text())
#: By name: the command, and the scenarios whose state it needs.
SCENARIOS: dict[str, tuple[list[str], list[str]]] = {
    name: (about["command"].split(), about.get("needs", [])) for name, about in QUESTIONS["scenarios"].items()
}
_WEIGHTS = ("student*.safetensors", "epoch-*.safetensors")
_mlflow = threading.Lock()  # its client keeps an address for the whole process


@dataclass
class Side:
    """One of the two: a tree, and a folder for all that it writes.

    Attributes:
        name: for messages.
        tree: the code.
        folder: for its state; `work` in it is where its commands are started.
    """

    name: str
    tree: Path
    folder: Path
    facts: Facts = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def state(self) -> Path:
        return self.work / ".rco"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the developer's but what starts a process."""
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "HOME": str(home),
            "PYTHONPATH": str(self.tree),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def normalised(self, text: str) -> str:
        """Text without what is this side's own."""
        return normalised(text, {str(self.work): "<work>", str(self.folder): "<folder>", str(self.tree): "<tree>"})

    def start(self, *arguments: str, cwd: Path, timeout: int = 3600, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the driver in this tree."""
        cwd.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [sys.executable, "-P", str(DRIVER), str(self.tree), *arguments],
            cwd=cwd,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ask(self, questions: dict[str, Any]) -> None:
        """Facts about help, packages, checks and commands.

        Raises:
            RuntimeError: the tree cannot be asked.
        """
        folder = self.folder / "asked"
        folder.mkdir(parents=True)
        for name, content in questions.get("files", {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        (self.folder / "questions.json").write_text(json.dumps(questions))
        output = self.folder / "answers.json"
        # A named image: whether one has been built is not the code's.
        image = "registry.example.com/rco-python:golden"
        done = self.start("ask", str(self.folder / "questions.json"), str(output), cwd=folder, RCO_IMAGE=image)
        if done.returncode or not output.exists():
            raise RuntimeError(f"{self.name} cannot be asked:\n{done.stdout}")
        for name, value in json.loads(output.read_text()).items():
            if isinstance(value, str):
                value = self.normalised(value)
                if name.startswith("commands/"):  # packages are called by their content, requests by chance
                    value = re.sub(r"\b([0-9a-f]{16}|[0-9a-f]{64})\b", "<digest>", value)
            self.facts[name] = value

    def run(self, name: str) -> None:
        """One scenario, and what it leaves behind."""
        words, _ = SCENARIOS[name]
        before = set(self._weights())
        places = {path.name: path for path in self._weights()}  # of the first run, to import
        given = [str(places[word]) if word.startswith("epoch-") and word in places else word for word in words]
        done = self.start("command", *given, cwd=self.work)
        self.facts[f"{name}/status"] = str(done.returncode)
        (self.folder / f"{name}.log").write_text(done.stdout)
        working, _, summary = done.stdout.partition("\n\n")
        self.facts[f"{name}/progress"] = progress(self.normalised(working))
        self.facts[f"{name}/printed"] = printed(self.normalised(summary))
        for last in ("last-run", "last-comparison"):
            report = self.state / last
            if report.exists() and str(report.resolve()) not in self._seen:
                self._seen.add(str(report.resolve()))
                self._report(f"{name}/report", report)
        digests: dict[str, set[Path]] = {}
        for path in set(self._weights()) - before:
            digests.setdefault(path.stem, set()).add(path)
        for stem, paths in digests.items():
            self.facts[f"{name}/weights/{stem}/tensors"] = "\n".join(sorted({tensors_digest(path) for path in paths}))
            self.facts[f"{name}/weights/{stem}/file"] = "\n".join(sorted({file_digest(path) for path in paths}))
        with _mlflow:
            self._tracked(name)

    def _weights(self) -> list[Path]:
        """Weights that the runs have written, but for what is kept to go on after an interruption."""
        found = (path for pattern in _WEIGHTS for path in self.work.rglob(pattern))
        return [path for path in found if not path.is_relative_to(self.state / "resume")]

    def _report(self, where: str, folder: Path) -> None:
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        self.facts[f"{where}/files"] = "\n".join(files)
        for file in files:
            path = folder / file
            if path.name == "summary.json":
                leaves = flattened(json.loads(path.read_text()), f"{where}/summary")
                self.facts.update({key: self.normalised(str(value)) for key, value in leaves.items()})
            elif path.suffix == ".md":
                self.facts[f"{where}/{file}"] = printed(self.normalised(path.read_text()))
            elif path.suffix == ".csv":
                self.facts[f"{where}/{file}"] = rows(self.normalised(path.read_text()))

    def _tracked(self, name: str) -> None:
        """Runs, models and versions in MLflow that were not there before this scenario."""
        if not (self.state / "mlflow.db").exists():
            return
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow

        uri = f"sqlite:///{self.state}/mlflow.db"
        mlflow.set_tracking_uri(uri)  # artifacts are found by it
        client = mlflow.MlflowClient(uri, uri)
        for experiment in client.search_experiments():
            ids = [experiment.experiment_id]
            for run in sorted(client.search_runs(ids), key=lambda run: run.info.run_name):
                if self._new(run.info.run_id):
                    parent = run.data.tags.get("mlflow.parentRunId")
                    above = f"{client.get_run(parent).info.run_name} > " if parent else ""
                    key = self._free(f"{name}/mlflow/{experiment.name}/{above}{run.info.run_name}")
                    self._run(client, run, key)
            for model in sorted(client.search_logged_models(ids), key=lambda model: model.name):
                if self._new(model.model_id):
                    self._model(client, model, self._free(f"{name}/mlflow/{experiment.name}/model {model.name}"))
        for version in sorted(client.search_model_versions(), key=lambda v: (v.name, int(v.version))):
            if self._new(f"{version.name}/{version.version}"):
                where = f"{name}/mlflow/registry/{version.name} {version.version}"
                about = client.get_model_version(version.name, version.version)
                self._pairs(f"{where}/tags", about.tags)
                self.facts[f"{where}/aliases"] = ",".join(sorted(about.aliases))

    def _run(self, client: Any, run: Any, where: str) -> None:
        self.facts[f"{where}/status"] = run.info.status
        self._pairs(f"{where}/params", run.data.params)
        self._pairs(f"{where}/tags", run.data.tags)
        for metric in run.data.metrics:
            if not TIMED.search(metric):
                points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
                self.facts[f"{where}/metrics/{metric}"] = "\n".join(f"step {step}: {value!r}" for step, value in points)
        inputs = [
            f"{i.dataset.name} {i.dataset.digest} {sorted((t.key, t.value) for t in i.tags)}" for i in run.inputs.dataset_inputs
        ]
        self.facts[f"{where}/datasets"] = "\n".join(sorted(inputs))
        # Anchors are found by tags: of several students that learn from one, any may be the first, which uploads it.
        made = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
        self.facts[f"{where}/models"] = "\n".join(sorted(model.name for model in made if model.model_type != "anchor"))
        for key, value in run.data.tags.items():
            if re.fullmatch(r"m-[0-9a-f]{32}", value):
                self.facts[f"{where}/tags/{key}"] = f"model {client.get_logged_model(value).name}"
        self.facts[f"{where}/artifacts"] = "\n".join(self._artifacts(client, run.info.run_id))

    def _artifacts(self, client: Any, run_id: str, path: str | None = None) -> list[str]:
        found = []
        for file in client.list_artifacts(run_id, path):
            found += self._artifacts(client, run_id, file.path) if file.is_dir else [file.path]
        return sorted(found)

    def _model(self, client: Any, model: Any, where: str) -> None:
        self.facts[f"{where}/type"] = f"{model.model_type} {str(model.status).rpartition('.')[2]}"
        self._pairs(f"{where}/params", model.params)
        self._pairs(f"{where}/tags", model.tags)
        metrics = sorted((m.key, m.step, m.value) for m in client.get_logged_model(model.model_id).metrics or [])
        kept = [f"{key}, step {step}: {value!r}" for key, step, value in metrics if not TIMED.search(key)]
        self.facts[f"{where}/metrics"] = "\n".join(kept)
        self.facts[f"{where}/artifacts"] = "\n".join(
            sorted(file.path for file in client.list_logged_model_artifacts(model.model_id))
        )

    def _pairs(self, where: str, pairs: dict[str, str]) -> None:
        for key, value in (pairs or {}).items():
            if key in ("mlflow.user", "mlflow.source.name"):  # of the machine, and of the process that is a task
                continue
            self.facts[f"{where}/{key}"] = printed(self.normalised(str(value)))

    def _new(self, identity: str) -> bool:
        fresh = identity not in self._seen
        self._seen.add(identity)
        return fresh

    def _free(self, name: str) -> str:
        """The name, numbered if it is taken."""
        taken = {fact[: len(name) + 8] for fact in self.facts}
        number = 1
        free = name
        while any(fact.startswith(f"{free}/") for fact in taken):
            number += 1
            free = f"{name} #{number}"
        return free


def needed(scenarios: Collection[str]) -> list[str]:
    """These scenarios and those whose state they need, in order."""
    wanted = set(scenarios)
    for name in scenarios:
        wanted.update(SCENARIOS[name][1])
    return [name for name in SCENARIOS if name in wanted]


def collect(side: Side, questions: dict[str, Any], scenarios: list[str]) -> Facts:
    """All facts of one side."""
    if questions["parts"]:
        side.ask(questions)
    for name in scenarios:
        sys.stdout.write(f"{side.name}: rco {' '.join(SCENARIOS[name][0])}\n")  # at once: two sides write
        sys.stdout.flush()
        side.run(name)
    return side.facts
