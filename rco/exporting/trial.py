"""Whether a student can be exported, before it is trained."""

from __future__ import annotations

from collections.abc import Sequence

from rco.core.errors import InputError
from rco.exporting.config import OF_ONNX
from rco.models.spec import NetworkSpec


def try_export(formats: Sequence[str], student: NetworkSpec) -> None:
    """Trace a student with random weights, and look for the libraries that the formats need. Costs seconds.

    Raises:
        InputError: it cannot be exported; it names `export`, or the `student`.
    """
    from rco.exporting.formats import require_onnx

    if asked := [name for name in formats if name in OF_ONNX]:
        try:
            require_onnx()
        except InputError as error:
            raise InputError("export", asked[0], error.problem, f"{error.remedy}, or leave out {', '.join(asked)}") from None
    if formats:
        try:
            try_tracing(student)
        except InputError as error:
            remedy = f"{error.remedy}; or leave out export: student.safetensors and the model's code are enough to load it"
            raise InputError("student", error.value, error.problem, remedy) from None


def try_tracing(student: NetworkSpec) -> None:
    """Trace a student with random weights, as export and registration do.

    Raises:
        InputError: it cannot be traced.
    """
    from rco.exporting.formats import traced

    shape = (student.in_channels, student.image_size, student.image_size)
    traced(student.build(seed=0).eval(), shape, student.model)
