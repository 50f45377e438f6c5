"""Kinds of data sources: which of them a data set is, and CSV files that list images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli.recipes import merged_comparison, merged_parameters
from rco.config.branches import Comparison
from rco.config.parameters import PARAMETERS, RunConfig
from rco.core.errors import InputError, UnusedError
from rco.core.settings import from_dict, jsonable
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources import csv_rows
from rco.data.sources.base import SOURCES
from rco.data.sources.csv_file import CsvFile
from rco.data.sources.kinds import check_source, open_source, source_digest
from rco.data.sources.published import PublishedFiles
from rco.tasks.preflight import preflight


class TestWhichKind:
    @pytest.mark.parametrize(
        ("dataset", "kind"),
        [
            ("digits", "digits"),
            ("cifar10", "torchvision"),
            ("CIFAR10", "folder"),
            ("birds", "folder"),
            ("file:///data/birds", "folder"),
            ("birds.tar", "tar"),
            ("birds.TGZ", "tar"),
            ("file:///data/birds.csv", "csv"),
            ("birds.CSV", "csv"),
            ("birds.csv/", "folder"),
            ("s3://bucket/birds", "s3"),
            ("s3://bucket/birds.tar.gz", "s3"),
            ("s3://bucket/birds.csv", "csv"),
            ("s3://bucket/birds.csv/", "s3"),
        ],
    )
    def test_follows_from_the_data_set(self, dataset: str, kind: str) -> None:
        made = [DataConfig(dataset=dataset), DataConfig.of(dataset=dataset), RunConfig.from_flat({"dataset": dataset}).data]
        made += [DataConfig().with_values(dataset=dataset), RunConfig.from_flat({"dataset": dataset, "source": "auto"}).data]
        assert {config.source.plugin_name for config in made} == {kind}

    @pytest.mark.parametrize("name", ["a.csv", "a.tar"])
    def test_an_existing_folder_is_one_whatever_its_name(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        assert DataConfig(dataset=str(tmp_path / name)).source.plugin_name == "folder"

    def test_it_can_be_named(self) -> None:
        config = RunConfig.from_flat({"source": "csv", "dataset": "list.txt", "csv_label_column": "class"})
        assert config.data.source == CsvFile(csv_label_column="class")
        assert config.data.with_values(probe_size=3).source == config.data.source
        with pytest.raises(InputError, match=r"source = 'folders': is not known\. Did you mean 'folder'"):
            DataConfig.of(source="folders")

    @pytest.mark.parametrize(
        ("source", "dataset", "words"),
        [
            ("digits", "mnist", "is not one of source = digits"),
            ("torchvision", "digits", "which are mnist, fashionmnist"),
            ("folder", "s3://bucket/x", "is in a store"),
            ("tar", "s3://bucket/x.tar", "is in a store"),
            ("s3", "x", "is not an s3:// address"),
        ],
    )
    def test_a_name_that_contradicts_the_data_set(self, source: str, dataset: str, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            DataConfig.of(source=source, dataset=dataset)
        assert caught.value.parameter == "dataset"

    def test_forms_and_flags_keep_auto_and_records_have_the_kind(self) -> None:
        assert PARAMETERS["source"].default == "auto"
        assert Comparison.of({}).to_parameters()["source"] == "auto"
        config = RunConfig.from_flat({"dataset": "cifar10", "download": "true"})
        flat = config.to_flat()
        assert (flat["source"], flat["download"]) == ("torchvision", True)
        assert RunConfig.from_flat(flat) == config
        words = jsonable(config.data)
        assert words["source"] == "torchvision"
        assert {"data_root", "download"} <= set(words)
        assert not {"csv_root"} & set(words)
        assert from_dict(DataConfig, words) == config.data
        compared = preflight(Comparison.of({"epochs": 8}))
        assert compared.filing.parameters["source"] == "digits"
        assert compared.data.plugins == {}

    def test_credentials_are_not_repeated(self) -> None:
        with pytest.raises(InputError, match="holds credentials") as caught:
            RunConfig.from_flat({"dataset": "s3://key:secret@bucket/x", "download": True})
        assert "secret" not in str(caught.value)


class TestWhatReachesNothing:
    FOLDER = r"csv_root = 'x': means nothing with dataset = birds \(source folder\). .* give a dataset of source = csv$"

    @pytest.mark.parametrize(
        ("flat", "words"),
        [
            (
                {"download": True},
                r"means nothing with dataset = digits \(source digits\).*give a dataset of source = torchvision",
            ),
            ({"dataset": "birds", "csv_root": "x"}, FOLDER),
            (
                {"dataset": "birds", "csv_root": "x", "source": "folder"},
                "means nothing with source = folder.*set source = csv$",
            ),
            ({"dataset": "birds.csv", "data_root": "x"}, r"dataset = birds.csv \(source csv\)"),
        ],
    )
    def test_is_refused_in_runs_comparisons_and_sweeps(self, flat: dict[str, Any], words: str) -> None:
        for ask in (
            lambda: RunConfig.from_flat(flat),
            lambda: Comparison.of(flat),
            lambda: Comparison.of({**flat, "grid": {"tau": [2, 4]}}),
        ):
            with pytest.raises(UnusedError, match=words):
                ask()

    def test_what_reaches_something_reaches_every_branch(self) -> None:
        for grid in ({}, {"tau": [2, 4]}):
            comparison = Comparison.of({"dataset": "mnist", "data_root": "there", "grid": grid})
            assert {branch.config.data.source for branch in comparison.branches} == {PublishedFiles(data_root="there")}

    @pytest.mark.parametrize("merged", [merged_parameters, merged_comparison])
    def test_of_a_recipe_it_is_left_out_and_said(
        self, merged: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "mine.yaml").write_text("dataset: cifar10\ndownload: true\n")
        recipe = str(tmp_path / "mine.yaml")
        assert merged(recipe, {"epochs": 8})["download"] is True
        assert "download" not in merged(recipe, {"dataset": "digits", "epochs": 8})
        assert "is left out: it means nothing with dataset = digits (source digits)" in capsys.readouterr().err

    def test_import_route_has_the_parameters_of_sources(self, tmp_path: Path) -> None:
        from pipelines.cli.route import import_route

        (tmp_path / "a.pt").touch()
        arguments = [str(tmp_path / "a.pt"), "--epochs=1", f"--output={tmp_path / 'out'}", "--teacher=digits-mlp"]
        for more, words in (
            (["--dataset=digits", "--data-root=x"], "means nothing with dataset = digits"),
            (["--dataset=mnist", f"--data-root={tmp_path}"], "lacks files of mnist"),
            (["--dataset=list.txt", "--source=csv", "--csv-label-column=class"], "list.txt"),
        ):
            done = CliRunner().invoke(import_route, [*arguments, *more])
            assert words in str(done.exception), done.output


SHARDS = """
from contextlib import contextmanager
from dataclasses import dataclass
import numpy as np
from rco.core.settings import setting
from rco.data.images import ArrayImages
from rco.data.sources.base import SOURCES, Info, Source, SourceKind
from rco.data.sources.layout import laid_out

@SOURCES.register("shards")
@dataclass(frozen=True, kw_only=True)
class Shards(SourceKind):
    summary = "shards"

    shard_size: int = setting(10, "images of a shard")

    @classmethod
    def claims(cls, value):
        return value.endswith((".shards", ".tar.gz"))

    def digest(self, config):
        return "x"

    def check(self, config):
        return Info(2, ("a", "b"), (1, 8, 8), {"train": 40})

    @contextmanager
    def open(self, config, scratch):
        labels = np.arange(40) % 2
        layout = laid_out(config.dataset, ("a", "b"), labels, {"train": np.arange(40)}, config.open_classes)
        yield Source(layout, ArrayImages(np.zeros((40, 1, 8, 8), np.uint8)))
"""
BROKEN = """
from rco.data.sources.base import SOURCES
import shards
from dataclasses import dataclass

@SOURCES.register("broken")
@dataclass(frozen=True, kw_only=True)
class Broken(shards.Shards):
    @classmethod
    def claims(cls, value):
        raise KeyError(value)
"""


def test_a_kind_of_another_package(tmp_path: Path) -> None:
    """In a process of its own, which finds it as the command line does."""
    (tmp_path / "shards.py").write_text(SHARDS)
    (tmp_path / "broken.py").write_text(BROKEN)
    folder = tmp_path / "shards-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: shards\nVersion: 1.2\n")
    (folder / "entry_points.txt").write_text("[rco.sources]\nshards = shards\nbroken = broken\n")
    code = """
import sys
from pathlib import Path
from rco.config.parameters import PARAMETERS, RunConfig
from rco.config.plugins import failures, installed
from rco.core.errors import InputError
from rco.data.prepare import prepare
from rco.tasks.preflight import plugin_parameters, preflight
print(failures())
config = RunConfig.from_flat({"dataset": "my.shards", "shard_size": "3"})
print(config.data.source, PARAMETERS["shard_size"].owners)
from rco.config.branches import Comparison
settings = preflight(Comparison.of_run(config))
print(settings.data.plugins.items() <= installed().items(), plugin_parameters(config))
print(prepare(config.data, Path(sys.argv[1]), settings.data.source_digest).sizes)
try:
    RunConfig.from_flat({"dataset": "a.tar.gz"})
except InputError as error:
    print(error)
print(RunConfig.from_flat({"dataset": "a.tar.gz", "source": "tar"}).data.source)
print(RunConfig.from_flat(config.to_flat()) == config, RunConfig.from_flat({"source": "broken"}).data.source)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong, known, used, sizes, unclear, named, still = done.stdout.splitlines() or [done.stderr] * 7
    assert wrong == """["source 'broken' cannot be used (shards: KeyError: 'digits')"]"""
    assert known == "Shards(shard_size=3) ('broken', 'shards')"
    assert re.fullmatch(r"True {'plugins': 'source shards of shards 1.2 \([0-9a-f]{12}\)'}", used), used
    assert sizes == "{'train': 26, 'val': 6, 'test': 8}"
    assert unclear == "source = 'auto': is not clear: the dataset may be of shards and tar. Set source to one of them"
    assert named.startswith("Tar(class_order=")
    assert still == "True Broken(shard_size=10)"


def test_reserved() -> None:
    with pytest.raises(TypeError, match="means something else"):
        SOURCES.register("auto")(CsvFile)


# --- CSV ------------------------------------------------------------------------------------------------------------------


def picture(seed: int, path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(path)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Ten images of each of two classes, in folders; list.csv says so."""
    for number in range(20):
        picture(number, tmp_path / "birds" / ("kite", "wren")[number % 2] / f"{number:02}.png")
    write(tmp_path / "birds" / "list.csv")
    return tmp_path / "birds"


ROWS = [f"{name}/{number:02}.png,{name}" for number in range(20) for name in [("kite", "wren")[number % 2]]]


def write(path: Path, rows: list[str] = ROWS, header: str = "path,label", encoding: str = "utf-8") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def of(path: Path | str, **options: Any) -> DataConfig:
    return DataConfig.of(source="csv", dataset=str(path), probe_size=2, **options)


def refused(path: Path | str, **options: Any) -> str:
    """Why; all three ways to read it say the same."""
    config, said = of(path, **options), set()
    scratch = Path(path).parent if "://" not in str(path) else Path()
    for act in (check_source, source_digest, lambda config: open_source(config, scratch).__enter__()):
        with pytest.raises(InputError) as caught:
            act(config)
        said.add(str(caught.value))
    (words,) = said
    return words


class TestCsv:
    def test_holds_what_the_folder_holds(self, birds: Path, tmp_path: Path) -> None:
        listed = DataConfig(dataset=str(birds / "list.csv"))
        folder = DataConfig(dataset=str(birds))
        assert check_source(listed) == check_source(folder)
        made = [prepare(config, tmp_path / f"out{i}", "x") for i, config in enumerate((listed, folder))]
        assert made[0].digest == made[1].digest

    @pytest.mark.parametrize(
        ("header", "mark", "encoding", "options"),
        [
            ("path,label", ",", "utf-8-sig", {}),
            ("Path; LABEL ", ";", "utf-8", {}),
            ("path\tlabel", "\t", "utf-8", {}),
            ("file,kind", ",", "utf-8", {"csv_path_column": "file", "csv_label_column": "kind"}),
        ],
    )
    def test_spellings(self, birds: Path, header: str, mark: str, encoding: str, options: dict[str, str]) -> None:
        rows = ["", *(row.replace(",", f"{mark} ") for row in ROWS), "", mark]
        path = write(birds / "other.csv", rows, header, encoding)
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert check_source(of(path, **options)).class_names == ("kite", "wren")

    @pytest.mark.parametrize("column", ["split", "Part", "fold"])
    def test_parts(self, birds: Path, tmp_path: Path, column: str) -> None:
        parts = ["Train", "training", "VALID", "dev", "Testing"]
        rows = [f"{row},{parts[i // 2 % 5]}" for i, row in enumerate(ROWS)]
        path = write(birds / "parts.csv", rows, f"path,label,{column}")
        options = {"csv_part_column": "fold"} if column == "fold" else {}
        assert check_source(of(path, **options)).counts == {"train": 8, "val": 8, "test": 4}
        data = prepare(of(path, **options), tmp_path / "out", "x")
        assert data.sizes == {"train": 8, "val": 8, "test": 4}
        if column != "fold":
            assert check_source(of(path, csv_part_column="none")).counts == {"train": 20}

    def test_val_without_test_is_the_test_part(self, birds: Path) -> None:
        rows = [f"{row},{'val' if i > 11 else 'train'}" for i, row in enumerate(ROWS)]
        path = write(birds / "parts.csv", rows, "path,label,split")
        assert check_source(of(path)).counts == {"train": 12, "test": 8}

    def test_open_classes(self, birds: Path, tmp_path: Path) -> None:
        for number in range(3):
            picture(100 + number, birds / "owl" / f"{number}.png")
        path = write(birds / "list.csv", [*ROWS, *(f"owl/{i}.png,owl" for i in range(3))])
        data = prepare(of(path, open_classes=("owl",)), tmp_path / "out", "x")
        assert (data.class_names, data.sizes["open"]) == (("kite", "wren"), 3)

    def test_a_path_twice_alike_counts_once(self, birds: Path) -> None:
        path = write(birds / "list.csv", [*ROWS, ROWS[0], f"./{ROWS[1]}", f"kite/../{ROWS[1]}"])
        assert check_source(of(path)).counts == {"train": 20}

    def test_a_local_file_lists_any_local_file(self, birds: Path, tmp_path: Path) -> None:
        """Absolute paths, paths upward, and paths from another folder: the same images."""
        expected = prepare(DataConfig(dataset=str(birds)), tmp_path / "out", "x").digest
        elsewhere = tmp_path / "lists" / "deep"
        elsewhere.mkdir(parents=True)
        absolute = write(elsewhere / "absolute.csv", [f"{birds}/{row}" for row in ROWS])
        upward = write(elsewhere / "upward.csv", [f"../../birds/{row}" for row in ROWS])
        other = write(elsewhere / "other.csv")
        for i, config in enumerate((of(absolute), of(upward), of(other, csv_root=str(birds)))):
            with open_source(config, tmp_path) as source:
                assert source.images.root == birds
            assert prepare(config.with_values(probe_size=256), tmp_path / f"out{i}", "x").digest == expected

    def test_files_stay_files_above_the_limit(self, birds: Path, tmp_path: Path) -> None:
        manifest = prepare(of(birds / "list.csv", in_memory_gib=0), tmp_path / "out", "x")
        assert (manifest.storage, manifest.root) == ("files", str(birds))
        x, y = next(Dataset.open(tmp_path / "out").split("train").batches(100, workers=0))
        assert len(x) == len(y) == manifest.sizes["train"]

    def test_digest_follows_the_list_and_the_files(self, birds: Path) -> None:
        config = of(birds / "list.csv")
        seen = [source_digest(config), source_digest(config)]
        picture(50, birds / "kite" / "00.png")
        seen.append(source_digest(config))
        picture(51, birds / "kite" / "unlisted.png")
        seen.append(source_digest(config))
        write(birds / "list.csv", [*ROWS, "kite/unlisted.png,kite"])
        seen.append(source_digest(config))
        write(birds / "list.csv", [*ROWS, "kite/unlisted.png,wren"])
        seen.append(source_digest(config))
        assert (seen[0], seen[2]) == (seen[1], seen[3])
        assert len(set(seen)) == 4

    @pytest.mark.parametrize(
        ("header", "rows", "words"),
        [
            (
                "path,class",
                ROWS,
                r"csv_label_column = 'label': is not a column of .*, which has 'path', 'class'. Set csv_label",
            ),
            ("paths,label", ROWS, r"csv_path_column = 'path': is not a column.*Did you mean 'paths'\?"),
            (
                ROWS[0],
                ROWS[1:],
                r"begins with two columns, 'kite/00.png' and 'kite', and none is called 'path' or 'label': it has no",
            ),
            ("path,label,label", [f"{row},x" for row in ROWS], "csv_label_column = 'label': is the name of 2 columns"),
            ("path,label,split,part", [f"{row},train,train" for row in ROWS], "has the columns 'split' and 'part'"),
            ("path,label", [*ROWS, "kite/00.png,", "kite/02.png,"], "has no label in lines 22 and 23"),
            ("path,label", [*ROWS, ",kite"], "has no path in line 22"),
            (
                "path,label",
                [*ROWS, "kite/00.png,kite,train"],
                "another number of cells than its header, which has 2, in line 22",
            ),
            ("path,label", [*ROWS, 'kite/00.png,"ki\x1bte"'], "a label that is not plain text in line 22"),
            (
                "path,label,split",
                [f"{row},{i}" for i, row in enumerate(ROWS)],
                "lines 2, 3, 4, 5, 6 and 15 more .such as '0', '1', '2'",
            ),
            ("path,label,split", [f"{row},test" for row in ROWS], "lists images of test only"),
            (
                "path,label",
                [*ROWS, "no.png,kite", "nor.png,wren"],
                "do not exist in lines 22 and 23 .such as 'no.png', 'nor.png'",
            ),
            ("path,label", [*ROWS, "list.csv,kite"], "no images by their names in line 22 .such as 'list.csv'"),
            ("path,label", [*ROWS, "kite/00.png,wren"], "again with another label in line 22"),
            ("path,label,split", [*(f"{row},train" for row in ROWS), f"{ROWS[0]},test"], "again in another part in line 22"),
            ("path,label", [], "lists no images"),
            ("path,label", [*ROWS, '"kite/00.png,kite'], "cannot be read after line 21 .unexpected end of data"),
            ("path,label", [*ROWS, "x" * 140_000], "a line has more than 131,072 characters"),
            ("path,label", [*ROWS, '"' + "x\n" * 70_000], "field larger than field limit"),
            ("path,label", [*ROWS, "\0.png,kite"], "lead out of|do not exist"),
        ],
    )
    def test_what_is_refused(self, birds: Path, header: str, rows: list[str], words: str) -> None:
        said = refused(write(birds / "list.csv", rows, header))
        assert re.search(words, said), said
        assert len(said) < 1000

    def test_layouts_that_are_refused(self, birds: Path) -> None:
        rows = [f"{row},{'test' if 'kite' in row else 'train'}" for row in ROWS]
        with pytest.raises(
            InputError, match=r"has 1 class \(kite\) in rows of test that train does not have. Classes of train: wren"
        ):
            check_source(of(write(birds / "list.csv", rows, "path,label,split")))
        with pytest.raises(InputError, match="has one class only"):
            check_source(of(write(birds / "list.csv", ROWS[::2])))

    def test_files_that_are_no_csv(self, birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (birds / "list.csv").write_text("")
        assert "is empty" in refused(birds / "list.csv")
        (birds / "list.csv").write_bytes(b"path,label\nkite/\xff.png,kite\n")
        assert "is not UTF-8 text" in refused(birds / "list.csv")
        assert "is a folder" in refused(birds)
        assert "neither a known data set nor" in refused(birds / "none.csv")
        monkeypatch.setattr(csv_rows, "MOST_BYTES", 2**4)
        assert "GiB, as no list of images" in refused(write(birds / "list.csv"))

    def test_settings_that_cannot_work(self, birds: Path) -> None:
        with pytest.raises(InputError, match=r"csv_path_column = ' ': is empty"):
            of(birds / "list.csv", csv_path_column=" ")
        with pytest.raises(InputError, match=r"csv_root.*holds credentials"):
            of(birds / "list.csv", csv_root="s3://key:secret@bucket/x")
        assert "csv_root = 'nowhere': is not a folder" in refused(birds / "list.csv", csv_root="nowhere")
        assert "csv_root = 'gs://...': is not a kind of address" in refused(birds / "list.csv", csv_root="gs://bucket/x")

    def test_the_library_takes_its_parameters(self, birds: Path, tmp_path: Path) -> None:
        import rco

        path = write(birds / "list.csv", header="path,kind")
        data = rco.prepare_dataset(str(path), tmp_path / "out", csv_label_column="kind", probe_size=2)
        assert data.manifest.class_names == ("kite", "wren")

    def test_an_image_that_is_none(self, birds: Path, tmp_path: Path) -> None:
        (birds / "kite" / "00.png").write_text("nothing")
        check_source(of(birds / "list.csv"))  # of the others
        with pytest.raises(InputError, match=r"1 image file of 20 cannot be used: kite/00.png is not a readable image"):
            prepare(of(birds / "list.csv"), tmp_path / "out", "x")


class TestCsvInAStore:
    @pytest.fixture(autouse=True)
    def store(self, birds: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        from moto import mock_aws

        from rco.core.storage.s3 import ENDPOINTS
        from rco.core.storage.transfer import upload

        for name in ENDPOINTS:
            monkeypatch.delenv(name, raising=False)
        for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        with mock_aws():
            import boto3

            client = boto3.client("s3")
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="data/..\\odd", Body=b"nobody lists it")
            upload(birds, "s3://bucket/data")
            yield client

    def put(self, store: Any, rows: list[str], key: str = "data/list.csv") -> str:
        store.put_object(Bucket="bucket", Key=key, Body="\n".join(["path,label", *rows]).encode())
        return f"s3://bucket/{key}"

    def test_holds_what_the_folder_holds(self, birds: Path, tmp_path: Path, store: Any) -> None:
        local = DataConfig(dataset=str(birds))
        expected, info = prepare(local, tmp_path / "out", "x").digest, check_source(local)
        whole = [f"s3://bucket/data/{row}" for row in ROWS]
        for i, config in enumerate(
            (
                DataConfig(dataset="s3://bucket/data/list.csv"),
                DataConfig(dataset=self.put(store, whole)),
                DataConfig.of(dataset=self.put(store, ROWS, "list.csv"), csv_root="s3://bucket/data/"),
                DataConfig.of(dataset=str(birds / "list.csv"), csv_root="s3://bucket/data"),
                DataConfig.of(dataset=self.put(store, ROWS, "list.csv"), csv_root=str(birds)),
            )
        ):
            assert check_source(config) == info
            assert prepare(config, tmp_path / f"out{i}", "x").digest == expected
            assert [p.name for p in (tmp_path / f"out{i}").iterdir() if p.name.startswith(".")] == [], "leftovers"

    def test_only_what_is_listed_is_fetched_and_stays(self, tmp_path: Path, store: Any) -> None:
        config = of(self.put(store, ROWS[:12]), in_memory_gib=0)
        manifest = prepare(config, tmp_path / "out", "x")
        assert (manifest.storage, manifest.root) == ("files", "images")
        assert len(list((tmp_path / "out" / "images").rglob("*.*"))) == 12
        assert len(next(Dataset.open(tmp_path / "out").split("train").batches(100, workers=0))[0]) == manifest.sizes["train"]

    def test_channels_are_told_from_as_many_headers_as_it_takes(self, birds: Path, tmp_path: Path, store: Any) -> None:
        from rco.core.storage.transfer import upload

        for path in birds.rglob("*.png"):
            if path.stem != "19":
                Image.open(path).convert("L").save(path)
        upload(birds, "s3://bucket/mixed")
        store.put_object(Bucket="bucket", Key="mixed/kite/empty.png", Body=b"")
        for i, name in enumerate(("mixed", "mixed/list.csv")):
            config = DataConfig.of(dataset=f"s3://bucket/{name}", skip_broken=True)
            assert check_source(config).image_shape == (3, 8, 8)
            assert prepare(config, tmp_path / f"out{i}", "x").image_shape == (3, 8, 8)
            assert check_source(config.with_values(image_channels=1)).image_shape == (1, 8, 8)

    def test_digest_follows_the_list_and_the_files(self, store: Any) -> None:
        config = of("s3://bucket/data/list.csv")
        seen = [source_digest(config)]
        store.put_object(Bucket="bucket", Key="data/unlisted.png", Body=b"x")
        seen.append(source_digest(config))
        store.put_object(Bucket="bucket", Key="data/kite/00.png", Body=b"x")
        seen.append(source_digest(config))
        self.put(store, ROWS[1:])
        seen.append(source_digest(config))
        assert seen[0] == seen[1]
        assert len(set(seen)) == 3

    @pytest.mark.parametrize("path", ["/etc/x.png", "../x.png", "kite/../../x.png", "s3://other/x.png/../../../x.png"])
    def test_no_way_out(self, store: Any, path: str) -> None:
        said = refused(self.put(store, [*ROWS, f"{path},kite"]))
        assert "lists paths that lead out of s3://bucket/data in line 22" in said or "do not exist in line 22" in said

    def test_what_is_refused(self, store: Any) -> None:
        assert "do not exist in line 22" in refused(self.put(store, [*ROWS, "kite/x.png,kite"]))
        store.put_object(Bucket="bucket", Key="folder.csv/a.png", Body=b"x")
        assert "is a folder in the store, not a CSV file" in refused("s3://bucket/folder.csv")
        assert "holds no objects" in refused("s3://bucket/none.csv")
