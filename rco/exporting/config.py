"""The settings of export: formats and their files."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import setting

#: Format -> the name of its file.
FILES = {"onnx": "student.onnx", "pt2": "student.pt2", "int8": "student-int8.onnx"}
FORMATS = tuple(FILES)
#: Formats that need the libraries of the extra `export`.
OF_ONNX = ("onnx", "int8")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What a run writes of its student beside its weights."""

    export: tuple[str, ...] = setting(
        (),
        f"formats, of {', '.join(FORMATS)}, that the student is written in after its evaluation (empty: none); the files are "
        "beside the report, and in the student's MLflow run",
    )

    def __post_init__(self) -> None:
        for name in self.export:
            choice("export", name, FORMATS)
        if len(set(self.export)) < len(self.export):
            raise InputError("export", self.export, "names a format twice", "Name each once")
