"""A student on its way out: in other formats it answers as PyTorch does, and it answers about files as in training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

from pipelines.cli.main import main
from rco.core.documents import write_json
from rco.core.errors import InputError
from rco.data.inputs import Inputs
from rco.exporting import export as exporting
from rco.exporting import formats
from rco.exporting.config import FORMATS
from rco.exporting.export import Images, export
from rco.exporting.predict import image_paths, predictor
from rco.exporting.shipped import Shipped, shipped
from rco.models.spec import NetworkSpec, save_network

SPEC = NetworkSpec(model="resnet8", stem="auto", in_channels=3, num_classes=3, image_size=16)
INPUTS = Inputs(class_names=("ant", "bee", "cat, big"), image_shape=(3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student as a run leaves it."""
    folder = tmp_path_factory.mktemp("student")
    network = SPEC.build(0)
    network(torch.randn(64, 3, 16, 16))  # BatchNorm has seen something
    save_network(folder / "student.safetensors", network, SPEC)
    INPUTS.write(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (16, 16)), ("deep/b.jpg", (30, 20)), ("c.png", (16, 40))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def images(pictures: Path) -> Images:
    pixels = np.random.default_rng(1).random((48, 3, 16, 16), dtype=np.float32)
    return Images(pixels, None, pixels[:32], "48 images")


@pytest.fixture(scope="module")
def written(folder: Path, images: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[exporting.Row]]:
    """All formats, written once: the exporter takes seconds."""
    out = tmp_path_factory.mktemp("export")
    with shipped(str(folder), Path("nowhere")) as student:
        return out, export(student, FORMATS, out, images)


@pytest.fixture
def rco(tmp_path: Path) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, [*map(str, arguments), "--home", str(tmp_path / "home")])


class TestFormats:
    def test_each_answers_as_pytorch_does_and_says_what_it_costs(self, written: tuple[Path, list[exporting.Row]]) -> None:
        out, rows = written
        assert [row.format for row in rows] == ["PyTorch", "onnx", "pt2", "int8"]
        assert sorted(path.name for path in out.iterdir()) == ["student-int8.onnx", "student.onnx", "student.pt2"]
        by_format = {row.format: row for row in rows}
        assert by_format["onnx"].difference < formats.TOLERANCE
        assert by_format["pt2"].difference < formats.TOLERANCE
        assert 0 < by_format["int8"].difference < 0.2
        assert by_format["int8"].size < 0.5 * by_format["onnx"].size
        assert all(row.latency_ms > 0 for row in rows)
        assert all(row.accuracy >= 0.8 for row in rows)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_any_number_of_images_and_pixels_as_they_are(
        self, written: tuple[Path, list[exporting.Row]], folder: Path, batch: int
    ) -> None:
        pixels = np.random.default_rng(batch).random((batch, 3, 16, 16), dtype=np.float32)
        answers = formats.open_onnx(written[0] / "student.onnx").answers(pixels)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (INPUTS.mean, INPUTS.std))
        with shipped(str(folder), Path("nowhere")) as student, torch.inference_mode():
            expected = student.network((torch.from_numpy(pixels) - mean) / std).numpy()
        np.testing.assert_allclose(answers, expected, atol=1e-4)

    def test_the_file_says_what_it_is(self, written: tuple[Path, list[exporting.Row]]) -> None:
        about = formats.metadata_of(written[0] / "student.onnx")
        assert json.loads(about["class_names"]) == list(INPUTS.class_names)
        assert (about["model"], about["output"], len(about["sha256"])) == ("resnet8", "logits", 64)
        assert formats.open_onnx(written[0] / "student.onnx").opset >= 18

    def test_what_answers_otherwise_is_not_kept(
        self, folder: Path, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wrong(student: Shipped, path: Path, *, probabilities: bool = False) -> formats.Exported:
            path.write_bytes(b"x")
            return formats.Exported(path, lambda pixels: formats.eager(student.normalised)(pixels) + 0.1)

        monkeypatch.setattr(exporting, "to_pt2", wrong)
        with (
            shipped(str(folder), Path("nowhere")) as student,
            pytest.raises(InputError, match=r"format = 'pt2': answers 48 images otherwise than PyTorch: by 0\.\d+ of"),
        ):
            export(student, ["pt2"], tmp_path, images)
        assert list(tmp_path.iterdir()) == []

    def test_a_network_that_cannot_be_traced_is_said(self, images: Images, tmp_path: Path) -> None:
        class Deciding(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                pooled = x.mean((2, 3))
                return pooled if pooled.sum() > 0 else -pooled

        student = Shipped(Deciding().eval(), INPUTS, "mine:Deciding", "0" * 64, "here")
        with pytest.raises(InputError, match=r"student = 'mine:Deciding': cannot be traced by torch.export .*must not depend"):
            export(student, ["pt2"], tmp_path, images)
        assert list(tmp_path.iterdir()) == []

    def test_probabilities(self, folder: Path, images: Images, tmp_path: Path) -> None:
        with shipped(str(folder), Path("nowhere")) as student:
            export(student, ["pt2"], tmp_path, images, probabilities=True)
            found = formats.eager(formats.final(student, True))(images.pixels)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


class TestFound:
    def test_a_run_a_folder_a_file(self, folder: Path, tmp_path: Path) -> None:
        import shutil

        report = tmp_path / "home" / "runs" / "local-1" / "report"
        shutil.copytree(folder, report / "student")
        write_json(report / "summary.json", {"teacher": {"model": "t", "latency_ms": 1.0}})
        (tmp_path / "home" / "last-run").symlink_to(report)
        for where in ("", "local-1", str(report), str(report / "student"), str(report / "student" / "student.safetensors")):
            with shipped(where, tmp_path / "home") as student:
                assert student.model == "resnet8"
                assert student.measured["teacher"]["model"] == "t"

    @pytest.mark.parametrize(
        ("prepare", "where", "words"),
        [
            ((), "", "no run has ended in this home"),
            ((), "nowhere", "is neither a run of this home nor a folder"),
            (("x",), "x", "holds no student"),
            (("x/a/student.safetensors", "x/b/student.safetensors"), "x", "holds 2 students"),
        ],
    )
    def test_what_is_not_there_is_said(
        self, prepare: tuple[str, ...], where: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in prepare:
            path = tmp_path / name
            (path.parent if path.suffix else path).mkdir(parents=True)
            if path.suffix:
                path.touch()
        with pytest.raises(InputError, match=words), shipped(where, tmp_path / "home"):
            pass

    def test_a_student_of_0_1_is_refused_with_the_way_on(self, tmp_path: Path) -> None:
        save_network(tmp_path / "student.safetensors", SPEC.build(0), SPEC)
        with pytest.raises(InputError, match=r"of a version before 0\.2\. Run it again"), shipped(str(tmp_path), tmp_path):
            pass

    def test_code_that_only_the_file_names_does_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "shipnets.py").write_text("from torch import nn\ndef net(num_classes): return nn.Linear(1, num_classes)\n")
        monkeypatch.syspath_prepend(tmp_path)
        spec = NetworkSpec(model="shipnets:net", stem="auto", in_channels=3, num_classes=3, image_size=16)
        save_network(tmp_path / "student.safetensors", spec.build(0), spec)
        INPUTS.write(tmp_path)
        with pytest.raises(InputError, match="Pass it as model="), shipped(str(tmp_path), tmp_path):
            pass
        with shipped(str(tmp_path), tmp_path, model="shipnets:net") as student:
            assert isinstance(student.network, nn.Linear)
        with pytest.raises(InputError, match=r"is not what .* says that it is"), shipped(str(tmp_path), tmp_path, model="a:b"):
            pass


class TestPredict:
    def test_images_are_brought_to_it_as_in_training(self, pictures: Path) -> None:
        from rco.data.images import FileImages

        names = ["a.png", "deep/b.jpg", "c.png"]
        trained = FileImages(pictures, names, (3, 16, 16), resize=True).read(np.arange(3))
        np.testing.assert_array_equal(INPUTS.pixels([pictures / name for name in names]), trained.astype(np.float32) / 255)

    def test_files_folders_and_lists(self, pictures: Path, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(f"path,label\n{pictures / 'a.png'},ant\n")
        found = image_paths([str(pictures), str(pictures / "c.png"), str(tmp_path / "list.csv")])
        assert [path.name for path in found] == ["a.png", "c.png", "b.jpg", "c.png", "a.png"]
        for given, words in (("nothing.png", "neither a file nor"), (str(tmp_path), "holds no images")):
            with pytest.raises(InputError, match=words):
                image_paths([given])
        with pytest.raises(InputError, match="has no column 'file'"):
            image_paths([str(tmp_path / "list.csv")], "file")

    def test_the_same_from_safetensors_and_from_onnx(
        self, folder: Path, pictures: Path, written: tuple[Path, list[exporting.Row]]
    ) -> None:
        paths = image_paths([str(pictures)])
        answers = []
        for where in (str(folder), str(written[0] / "student.onnx")):
            with predictor(where, Path("nowhere")) as asked:
                answers.append(list(asked.ask(paths, 3)))
        for ours, theirs in zip(*answers, strict=True):
            assert [name for name, _ in ours.classes] == [name for name, _ in theirs.classes]
            np.testing.assert_allclose([p for _, p in ours.classes], [p for _, p in theirs.classes], atol=1e-4)
            assert sum(p for _, p in ours.classes) == pytest.approx(1)
            assert {name for name, _ in ours.classes} == set(INPUTS.class_names)

    def test_the_command_names_classes_and_what_it_cannot_read(
        self, rco: Callable[..., Result], folder: Path, pictures: Path, tmp_path: Path
    ) -> None:
        done = rco("predict", pictures / "a.png", "--student", folder, "--top", "2")
        assert done.exit_code == 0, done.output
        assert done.output.count(" %") == 2
        (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
        done = rco("predict", tmp_path / "broken.png", pictures / "a.png", "--student", folder, "--json")
        assert done.exit_code == 1
        broken, good = (json.loads(line) for line in done.output.splitlines())
        assert "is not a readable image" in broken["error"]
        assert [set(one) for one in good["classes"]] == [{"class", "probability"}] * 3

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["predict", "nothing.png"], "image = 'nothing.png': is neither a file nor a folder"),
            (["export", "--format", "onx"], "Did you mean 'onnx'"),
            (["export", "--format", ""], "is empty"),
            (["export", "nowhere", "--format", "pt2"], "is neither a run of this home nor a folder"),
            (["serve"], "has no MLflow database"),
        ],
    )
    def test_bad_input_is_one_paragraph(
        self, rco: Callable[..., Result], arguments: list[Any], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        done = rco(*arguments)
        assert done.exit_code == 2, done.output
        assert words in done.output
        assert len(done.output.strip().splitlines()) == 1
