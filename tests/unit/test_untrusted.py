"""What others wrote is read without running it, growing without end, or leaving its folder. `tests.fuzz` looks for the rest."""

from __future__ import annotations

import ast
import errno
import gzip
import io
import json
import os
import pickle
import resource
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipelines.cli.recipes import read_recipe
from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.storage.addresses import local_path
from rco.core.storage.contents import exists, listing
from rco.core.storage.local import list_files
from rco.core.tensors import load_arrays, save_arrays, save_model
from rco.data.config import DataConfig
from rco.data.sources.kinds import check_source, open_source, source_digest
from rco.data.sources.unpack import MOST_UNPACKED
from rco.evaluation.measured import read_evaluation
from rco.models.families import packages
from rco.models.route import Anchor, Route
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.models.weights import read_state
from rco.reporting.student import Student
from rco.tasks.students import PROBE, STUDENT, load_student, save_student
from rco.tracking.record import Record
from rco.training.config import RouteConfig
from tests.hostile import Touch, hostile_pickle, with_record
from tests.unit.test_data import folder_of, tar_of

ROOT = Path(__file__).resolve().parents[2]
SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=3, image_size=8)


class TestNoPickle:
    #: What a pickle could come from, in the code that runs; nor is torch.load there, though weights_only would be safe.
    UNPICKLERS = ("pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle")

    @pytest.mark.parametrize("package", ["rco", "components", "pipelines"])
    def test_nothing_in_the_code_unpickles(self, package: str) -> None:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    assert not {name.name.partition(".")[0] for name in node.names} & set(self.UNPICKLERS), path
                elif isinstance(node, ast.ImportFrom):
                    assert (node.module or "").partition(".")[0] not in self.UNPICKLERS, path
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    called = ast.unparse(node.func)
                    assert called not in ("np.load", "numpy.load", "joblib.load", "pandas.read_pickle", "torch.jit.load"), path
                    keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert called != "torch.load", path
                    assert "allow_pickle" not in keywords, path

    def hostile_files(self, canary: Path) -> dict[str, bytes]:
        """By name of a file: what would touch the canary if it were unpickled."""
        files = {
            "plain.pt": hostile_pickle(canary),
            "plain.pt2": hostile_pickle(canary),
            "x.safetensors": hostile_pickle(canary),
        }
        for name, content in (("object.pt", Touch(canary)), ("module.pt", {"state_dict": {"a": Touch(canary)}})):
            for format_ in (True, False):
                file = io.BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=format_)
                files[f"{'new' if format_ else 'old'}-{name}"] = file.getvalue()
        program = io.BytesIO()
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), program)
        files["program.pt2"] = with_record(program.getvalue(), "sample_inputs", hostile_pickle(canary))
        return files

    def test_hostile_weights_are_refused_and_do_nothing(self, tmp_path: Path) -> None:
        canary = tmp_path / "owned"
        files = self.hostile_files(canary)
        assert len(files) == 8
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError):
                read_state(tmp_path / name)
            with pytest.raises(InputError):
                load_network(tmp_path / name)
        assert not canary.exists()
        pickle.loads(files["plain.pt"])
        assert canary.exists(), "the canary works"

    def test_an_archive_that_grows_is_not_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.pt"
        torch.save({"a": torch.zeros(2**22)}, path)
        with zipfile.ZipFile(path) as archive:
            records = {member.filename: archive.read(member) for member in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in records.items():
                archive.writestr(name, content)
        assert path.stat().st_size < 2**20
        with pytest.raises(InputError, match="grows when it is read"):
            read_state(path)


class TestFactories:
    """Code of the user's runs because the user names it, never because a file does."""

    @pytest.fixture
    def canary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A module that must not be imported."""
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "canary_of_files.py").write_text("def factory(**_):\n    raise AssertionError('ran')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "code"))
        return "canary_of_files"

    @pytest.mark.parametrize("model", ["{}:factory", "os:system", "builtins:exec", "{}:__import__", "{}:", ":x", " {}:factory"])
    def test_a_file_cannot_name_code_to_run(self, tmp_path: Path, canary: str, model: str) -> None:
        path = tmp_path / "anchor.safetensors"
        spec = NetworkSpec(model=model.format(canary), stem="auto", in_channels=1, num_classes=2, image_size=8)
        save_model(path, nn.Linear(2, 2), {"network": spec})
        with pytest.raises(InputError, match="factory of the user's code"):
            load_network(path)
        assert canary not in sys.modules

    def test_nor_a_network_of_another_package(self, tmp_path: Path, canary: str) -> None:
        about = tmp_path / "code" / "canaries-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: canaries\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[rco.models]\ncanary = {canary}:factory\n")
        path = tmp_path / "anchor.safetensors"
        spec = NetworkSpec(model="canary", stem="auto", in_channels=1, num_classes=2, image_size=8)
        save_model(path, nn.Linear(2, 2), {"network": spec})
        packages._found.cache_clear()
        try:
            with pytest.raises(InputError, match=r"'canary': is a network of another package, named by anchor.safetensors"):
                load_network(path)
            assert canary not in sys.modules
            with pytest.raises(InputError, match="ran"):
                load_network(path, spec=spec)
            del sys.modules[canary]
        finally:
            packages._found.cache_clear()

    def test_nor_can_a_model_in_mlflow(self, tmp_path: Path, canary: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlflow

        import rco

        spec = NetworkSpec(model=f"{canary}:factory", stem="auto", in_channels=1, num_classes=2, image_size=8)
        save_model(tmp_path / "model" / "anchor.safetensors", nn.Linear(2, 2), {"network": spec})
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda uri, dst_path: str(tmp_path / "model"))
        with pytest.raises(InputError, match="factory of the user's code"):
            rco.load("models:/m-0", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
        assert canary not in sys.modules

    def test_a_route_of_another_network_than_the_user_named_is_not_built(self, tmp_path: Path, canary: str) -> None:
        """With a spec, the file's own description is not asked."""
        path = tmp_path / "a.safetensors"
        save_model(path, SPEC.build(0), {"network": NetworkSpec(**{**SPEC.written, "model": f"{canary}:factory"})})
        assert load_network(path, spec=SPEC)
        assert canary not in sys.modules

    def test_what_the_user_names_runs(self, tmp_path: Path, canary: str) -> None:
        spec = NetworkSpec(model=f"{canary}:factory", stem="auto", in_channels=1, num_classes=2, image_size=8)
        with pytest.raises(InputError, match="ran"):
            spec.build()
        del sys.modules[canary]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_classes", 10**12),
            ("in_channels", 10**9),
            ("image_size", 10**9),
            ("model", "wrn-4000000000-1"),
            ("embedding_dim", 2**40),
        ],
    )
    def test_a_description_cannot_fill_the_memory(self, tmp_path: Path, name: str, value: Any) -> None:
        path = tmp_path / "a.safetensors"
        save_network(path, SPEC.build(0), NetworkSpec(**{**SPEC.written, name: value}))
        with pytest.raises(InputError):
            load_network(path)

    @pytest.mark.parametrize(
        "changed", [{"image_size": 16_000}, {"model": "torchvision/regnet_y_128gf"}, {"model": "wrn-1996-2000"}]
    )
    def test_a_network_larger_than_its_weights_is_not_built(self, tmp_path: Path, changed: dict[str, Any]) -> None:
        path = tmp_path / "a.safetensors"
        save_network(path, SPEC.build(0), NetworkSpec(**{**SPEC.written, **changed}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        torch.use_deterministic_algorithms(True)  # as in every task
        with pytest.raises(InputError, match=r"fewer than the described network has|a network that cannot be built"):
            load_network(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB"
        assert not nn.modules.module._global_parameter_registration_hooks, "later networks are built as ever"


class TestTars:
    def packed(self, path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
        tar_of(folder_of(path.parent / "animals", {"cat": 4, "dog": 4}), path)
        with tarfile.open(path, "a") as tar:
            for member, content in members:
                tar.addfile(member, io.BytesIO(content))
        return path

    def member(self, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, size
        return member

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
    )
    def test_only_plain_files_come_out(self, tmp_path: Path, kind: bytes) -> None:
        path = self.packed(tmp_path / "a.tar", [(self.member("cat/x.png", kind, "/etc/passwd"), b"")])
        for act in (check_source, lambda config: self.unpack(config, tmp_path / "out")):
            with pytest.raises(InputError, match=r"a member that is (a link|no plain file): 'cat/x.png'"):
                act(DataConfig(dataset=str(path)))

    def unpack(self, config: DataConfig, scratch: Path) -> list[str]:
        scratch.mkdir(exist_ok=True)
        with open_source(config, scratch) as source:
            return list(getattr(source.images, "paths", []))

    def test_a_link_cannot_carry_a_later_member_away(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        png = (folder_of(tmp_path / "one", {"cat": 1}) / "cat" / "000.png").read_bytes()
        link, file = self.member("cat/sub", tarfile.SYMTYPE, str(outside)), self.member("cat/sub/x.png", size=len(png))
        path = self.packed(tmp_path / "a.tar", [(link, b""), (file, png)])
        assert "cat/sub/x.png" in self.unpack(DataConfig(dataset=str(path)), tmp_path / "out")
        assert list(outside.iterdir()) == []

    def test_absolute_names_become_relative(self, tmp_path: Path) -> None:
        animals = folder_of(tmp_path / "animals", {"cat": 4, "dog": 4})
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for file in animals.rglob("*.png"):
                member = self.member(f"{tmp_path}/owned/{file.relative_to(animals)}", size=file.stat().st_size)
                tar.addfile(member, io.BytesIO(file.read_bytes()))
        assert check_source(DataConfig(dataset=str(path))).num_classes == 2
        assert len(self.unpack(DataConfig(dataset=str(path)), tmp_path / "out")) == 8
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_bombs_are_refused_after_bounded_work(self, tmp_path: Path, kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(MOST_UNPACKED, "0.05")
        head = self.member("cat/x.png", kind, size=2**30).tobuf()
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(head) + gzip.compress(bytes(2**24)) * 64)
        assert path.stat().st_size < 2**21
        with pytest.raises(
            InputError, match=r"it may be a bomb. If it is not, set RCO_MOST_UNPACKED|of a size that no header has"
        ):
            check_source(DataConfig(dataset=str(path)))

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
    def test_a_chain_of_headers_without_a_member_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(self.member("x", kind).tobuf() * 2000))
        with pytest.raises(InputError, match="is not a readable tar"):
            check_source(DataConfig(dataset=str(path)))

    def test_the_limit_can_be_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.packed(tmp_path / "a.tar", [])
        monkeypatch.setenv(MOST_UNPACKED, "1e-6")
        with pytest.raises(InputError, match="may be a bomb"):
            check_source(DataConfig(dataset=str(path)))
        monkeypatch.setenv(MOST_UNPACKED, "1")
        assert check_source(DataConfig(dataset=str(path))).num_classes == 2
        monkeypatch.setenv(MOST_UNPACKED, "much")
        with pytest.raises(InputError, match=r"RCO_MOST_UNPACKED.*is not a number"):
            check_source(DataConfig(dataset=str(path)))


class TestFolders:
    def test_links_that_multiply_are_refused(self, tmp_path: Path) -> None:
        root = tmp_path / "data"
        for i in range(30):
            (root / str(i)).mkdir(parents=True)
            for k in range(2):
                (root / str(i) / f"to{k}").symlink_to(root / str(i + 1))
        with pytest.raises(InputError, match="too many ways"):
            list_files(root)

    def test_a_folder_that_cannot_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = folder_of(tmp_path / "data", {"cat": 4, "owl": 4})
        scandir = os.scandir

        def closed(path: Any) -> Any:
            if str(path).endswith("owl"):  # mode 0 would not stop root
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", closed)
        for act in (check_source, source_digest):
            with pytest.raises(InputError, match=r"dataset = '.*owl': cannot be read \(Permission denied\)"):
                act(DataConfig(dataset=str(root)))

    def test_deep_folders_are_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "data"
        (folder / Path(*["a"] * 400)).mkdir(parents=True)
        with pytest.raises(InputError, match="nested too deeply"):
            list_files(folder)

    @pytest.mark.parametrize("name", ["ca\nt", "\x1b[2Jcat", "\udcff"])
    def test_class_folders_have_names_that_can_be_shown(self, tmp_path: Path, name: str) -> None:
        folder = folder_of(tmp_path / "data", {"cat": 4, name: 4})
        with pytest.raises(InputError, match="whose name is not plain text") as caught:
            check_source(DataConfig(dataset=str(folder)))
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_pixels_without_a_known_range_are_refused(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / "x.tif"
        Image.new(mode, (8, 8)).save(path)
        from rco.data.images import header

        with pytest.raises(InputError, match="whose range is not known"):
            header(path)


class TestDocuments:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"a": 1, "a": 2}', "two values of the same name"),
            ('{"a": NaN}', "NaN is not a number"),
            ("[" * 100_000, "nested too deeply"),
            ("1" * 5_000, "not valid JSON"),
            ('"\\ud800"', "surrogates not allowed"),
            ("", "not valid JSON"),
        ],
    )
    def test_json_is_strict(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=words):
            read_json(tmp_path / "a.json")

    @pytest.mark.parametrize("reader", [Route.open, Record.read, Anchor.read])
    def test_documents_of_the_wrong_shape_are_refused(self, tmp_path: Path, reader: Any) -> None:
        for document in ([], 1, None, {}, {"format": 1}, {"key": 1}, {"epoch": "1"}):
            for name in ("manifest.json", "record.json", "anchor.json"):
                (tmp_path / name).write_text(json.dumps(document))
            with pytest.raises(InputError):
                reader(tmp_path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "holds an alias"),
            ("dataset: !!python/object/apply:os.system ['true']\n", "has a tag that is not of plain data"),
            ("tau: 1\ntau: 2\n", "has 'tau' twice"),
            ("[" * 60_000, "nested too deeply"),
            ("- " * 30_000, "nested too deeply"),
            ("x" * 100_000, "larger than 64 KiB"),
            ("tau: !!int ''\n", "is not YAML"),
        ],
    )
    def test_recipes_are_plain_and_small(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(InputError, match=words):
            read_recipe(str(tmp_path / "a.yaml"))

    def test_a_safetensors_header_is_bounded(self, tmp_path: Path) -> None:
        header = json.dumps({"__metadata__": {"rco": '"' + "x" * 2**24 + '"'}}).encode()
        (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(InputError, match="its header would have"):
            load_arrays(tmp_path / "a.safetensors")

    def test_messages_can_be_shown(self) -> None:
        error = InputError("x", [[[]]], "is \x1b[2J\n\udc80", "Mend it")
        assert str(error).isprintable()
        assert str(InputError("x", 16**9000, "is large", "y")).startswith("x = a int: is large")


@pytest.mark.parametrize("address", ["s3://me:pass@bucket/x", "s3://me:pa/ss@bucket/x", "https://me:pa/ss@host/x"])
@pytest.mark.parametrize("parameter", ["dataset", "route"])
def test_addresses_with_passwords(parameter: str, address: str) -> None:
    """A secret key of AWS often has a slash."""
    with pytest.raises(InputError, match="holds credentials") as error:
        DataConfig(dataset=address) if parameter == "dataset" else RouteConfig(route=address)
    assert "ss@" not in str(error.value)
    with pytest.raises(InputError, match=r"credentials|not a kind of address") as error:
        listing(address)
    assert "ss@" not in str(error.value)


def test_a_key_may_have_an_at_sign() -> None:
    assert DataConfig(dataset="s3://bucket/me@home/animals.tar").dataset


def test_numbers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"hardness": 1e999}')
    with pytest.raises(InputError, match="1e999 is not a number"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "document", [{}, [], {"student": {}, "teacher": {}}, {"student": {"accuracy": "1"}}, {"student": {"accuracy": None}}]
)
def test_evaluations_that_are_none(tmp_path: Path, document: Any) -> None:
    write_json(tmp_path / "evaluation.json", document)
    for read in (read_evaluation, Student.read):
        with pytest.raises(InputError, match="Run the evaluation again"):
            read(tmp_path)


def test_a_student_that_was_exchanged_is_noticed(tmp_path: Path) -> None:
    spec = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
    save_student(tmp_path, spec.build(0), spec, np.zeros((1, 10), np.float32))
    load_student(tmp_path, spec)
    save_network(tmp_path / STUDENT, spec.build(1), spec)
    with pytest.raises(InputError, match="sha256"):
        load_student(tmp_path, spec)
    save_arrays(tmp_path / PROBE, {"logits": np.zeros((1, 10), np.float32)})
    with pytest.raises(InputError, match="does not say which student"):
        load_student(tmp_path, spec)


def test_addresses_that_are_none(tmp_path: Path) -> None:
    for uri in ("file://host/x", "file://", "file://[", "~nobody-of-this-name/x", "a" * 5_000, "a\0b"):
        with pytest.raises(InputError):
            local_path(uri)
    assert local_path(f"file://localhost{tmp_path}") == tmp_path
    assert not exists(os.fspath(tmp_path / "nowhere"))
