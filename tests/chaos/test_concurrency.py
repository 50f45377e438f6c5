"""Two at once: real processes write and read the same files. What a reader sees is whole, one writer's or another's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipelines.local.run import _publish
from rco.core.tensors import load_arrays
from rco.training import resume


@contextmanager
def at_once(code: str, folder: Path, count: int = 3) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run `code`, with `me` (their number) and `folder` (a path), from the moment that all are ready. The first
    that fails is told of: the others may wait for it."""
    head = (
        "import sys, time\nfrom pathlib import Path\nme, folder = int(sys.argv[1]), Path(sys.argv[2])\n"
        "def meet(name):\n"
        "    (folder / f'.{name}-{me}').touch()\n"
        f"    while len(list(folder.glob(f'.{{name}}-*'))) < {count}: time.sleep(0.001)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", head + code, str(me), str(folder)], text=True, stderr=subprocess.PIPE)
        for me in range(count)
    ]
    try:
        yield processes
        deadline = time.monotonic() + 300
        while running(processes) and not failed(processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in failed(processes):
            pytest.fail(process.stderr.read() if process.stderr else f"exit {process.returncode}")
        assert not running(processes), "still running after 300 s"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def running(processes: list[subprocess.Popen[str]]) -> bool:
    return any(process.poll() is None for process in processes)


def failed(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    return [process for process in processes if process.poll()]


def test_runs_that_end_at_once_and_a_reader_of_last_run(tmp_path: Path) -> None:
    code = (
        "import json\nfrom pipelines.local.run import _publish\nmeet('start')\n"
        "for i in range(100):\n"
        "    report = folder / 'runs' / f'{me}-{i}' / 'report'\n    report.mkdir(parents=True)\n"
        "    for name in 'ab': (report / f'{name}.json').write_text(json.dumps([me, i]))\n"
        "    _publish(report, folder / 'last-run')\n"
    )
    seen = 0
    with at_once(code, tmp_path) as processes:
        while running(processes):
            if (tmp_path / "last-run").exists():
                report = (tmp_path / "last-run").resolve()
                one, other = (json.loads((report / f"{name}.json").read_text()) for name in "ab")
                assert one == other
                seen += 1
    assert seen > 0
    assert (tmp_path / "last-run" / "a.json").is_file()
    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".start")} == {"runs", "last-run"}, "litter"


def test_last_run_of_an_older_version_gives_way(tmp_path: Path) -> None:
    (tmp_path / "last-run").mkdir()
    (tmp_path / "last-run" / "old").touch()
    (tmp_path / "runs" / "x" / "report").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "report" / "new").touch()
    _publish(tmp_path / "runs" / "x" / "report", tmp_path / "last-run")
    assert [p.name for p in (tmp_path / "last-run").iterdir()] == ["new"]
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "last-run" / "new").is_file(), "the folder of the runs can be moved"


def test_writers_of_one_cache_entry_and_a_reader(tmp_path: Path) -> None:
    from kfp.local.cache import LocalCache

    code = (
        "from kfp.local.cache import LocalCache\ncache = LocalCache(str(folder / 'cache'))\nmeet('start')\n"
        "for i in range(200): cache.put('key', {'a': [me] * 2000, 'b': me})\n"
    )
    cache, seen = LocalCache(str(tmp_path / "cache")), set()
    with at_once(code, tmp_path, count=2) as processes:
        while running(processes):
            if (tmp_path / "cache" / "key.json").exists():
                entry = cache.get("key")
                assert entry is not None, "an entry that is there is whole"
                assert entry["a"] == [entry["b"]] * 2000
                seen.add(entry["b"])
    assert seen
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["key.json"]


def test_writers_of_the_same_kept_logits_and_a_reader(tmp_path: Path) -> None:
    """A file is named by all that it depends on, so every writer writes the same."""
    code = (
        "import numpy as np\nfrom rco.core import tensors\nmeet('start')\n"
        "for i in range(60): tensors.save_arrays(folder / 'x.safetensors', {'logits': np.full((500, 10), 7.0, 'f2')})\n"
    )
    seen = 0
    with at_once(code, tmp_path) as processes:
        while running(processes):
            if (tmp_path / "x.safetensors").exists():
                arrays, _ = load_arrays(tmp_path / "x.safetensors")
                assert np.all(arrays["logits"] == 7)
                seen += 1
    assert seen > 0
    assert not list(tmp_path.glob(".x.safetensors.*"))


def test_one_download_at_a_time(tmp_path: Path) -> None:
    code = (
        "from rco.core.errors import InputError\nfrom rco.data.config import DataConfig\n"
        "from rco.data.sources import published\nfrom rco.data.sources.kinds import source_digest\n"
        "def download(known, root):\n"
        "    with (root / 'downloads').open('a') as log: log.write('x')\n"
        "    time.sleep(0.3)\n"
        "    for file in known.files:\n"
        "        (root / file).parent.mkdir(parents=True, exist_ok=True)\n        (root / file).write_bytes(b'half')\n"
        "published.download = download\n"
        "meet('start')\n"
        "try: source_digest(DataConfig.of(dataset='cifar10', data_root=str(folder), download=True))\n"
        "except InputError as error: assert 'as it was published' in str(error)\n"  # who downloads also reads
    )
    with at_once(code, tmp_path):
        pass
    assert (tmp_path / "downloads").read_text() == "x"


def test_two_pipeline_runs_make_one_experiment_in_a_new_database(tmp_path: Path) -> None:
    code = (
        "from rco.tracking.runs import Context, open_parent\n"
        "import mlflow\nmeet('start')\n"
        "for i in range(4):\n"
        "    where = Context(tracking_uri=f'sqlite:///{folder}/mlflow.db', pipeline_run=f'run-{me}-{i}')\n"
        "    meet(f'round{i}')\n    open_parent(where, f'experiment-{i}', 'x', {'me': me})\n"
    )
    with at_once(code, tmp_path, count=2):
        pass
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for i in range(4):
        experiment = client.get_experiment_by_name(f"experiment-{i}")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.data.params["me"] for run in runs} == {"0", "1"}


def test_points_that_come_and_go_while_others_look(tmp_path: Path) -> None:
    """A run that begins looks at the interrupted trainings of all runs; another one is writing and removing its own."""
    code = (
        "import shutil\nmeet('start')\n"
        "for i in range(600):\n"
        "    training = folder / 'resume' / 'local' / 'teacher' / f'{me}-{i % 3}'\n    training.mkdir(parents=True)\n"
        "    for n in range(3): (training / f'point-0000{n}-000000-{me:0>64}.safetensors').touch()\n"
        "    shutil.rmtree(training)\n"
    )
    looked = 0
    with at_once(code, tmp_path) as processes:
        while running(processes):
            if (tmp_path / "resume").is_dir():
                assert resume.sweep(tmp_path / "resume") == 0
                resume._mention_others(tmp_path / "resume" / "local" / "teacher", "mine", {})
                looked += 1
    assert looked > 20
