"""A student in other formats: ONNX, torch.export's archive, and ONNX with 8-bit weights and activations."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError, disk_full
from rco.core.files import atomically
from rco.core.settings import jsonable

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from rco.exporting.shipped import Shipped

Pixels = NDArray[np.float32]
Answers = Callable[[Pixels], Pixels]

INPUT = "pixels"
#: Largest difference between an exported student and PyTorch, as a part of the largest answer.
TOLERANCE = 1e-4
_BATCH = 256


@dataclass(frozen=True)
class Exported:
    """A student in a file.

    Attributes:
        answers: the file's own, of (B, C, H, W) pixels in 0..1.
        opset: of ONNX; 0: it is none.
    """

    path: Path
    answers: Answers
    opset: int = 0


def require_onnx() -> None:
    """Raise InputError unless the libraries of the extra are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            "format", "onnx", f"needs a library that is not installed ({error.name})", "Install it: pip install 'rco[export]'"
        ) from None


def final(student: Shipped, probabilities: bool) -> nn.Module:
    """What is exported: pixels in 0..1 in, logits or probabilities out."""
    from torch import nn

    return nn.Sequential(student.normalised, nn.Softmax(dim=1)).eval() if probabilities else student.normalised


def eager(model: nn.Module) -> Answers:
    """PyTorch's own answers."""
    import torch

    def answer(pixels: Pixels) -> Pixels:
        with torch.inference_mode():
            found: Pixels = model(torch.from_numpy(pixels)).numpy()
        return found

    return answer


def to_onnx(student: Shipped, path: Path, *, probabilities: bool = False) -> Exported:
    """Write ONNX with an open batch size; normalisation is inside, and the class names are in the metadata.

    Raises:
        InputError: the libraries are missing, or the network cannot be traced.
    """
    require_onnx()
    import onnx
    import torch

    example = torch.zeros((2, *student.inputs.image_shape))
    output = "probabilities" if probabilities else "logits"
    with _quiet(), _tracing(student.model):
        program = torch.onnx.export(
            final(student, probabilities),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    proto = program.model_proto
    about = {
        "class_names": json.dumps(list(student.inputs.class_names)),
        "image_shape": json.dumps(list(student.inputs.image_shape)),
        "decoding": json.dumps(jsonable(student.inputs.decoding)),
        "model": student.model,
        "sha256": student.sha256,
        "output": output,
    }
    onnx.helper.set_model_props(proto, about)
    atomically(path, lambda temporary: onnx.save(proto, str(temporary)))
    return open_onnx(path)


def open_onnx(path: Path) -> Exported:
    """An ONNX file, run by onnxruntime on the CPU.

    Raises:
        InputError: the library is missing, or it is not an ONNX file of a student.
    """
    require_onnx()
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()  # its own count is the machine's, whatever the container's limit
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class of its own for each way in which a file can be wrong
        problem = f"cannot be opened by onnxruntime ({_words(error)})"
        raise InputError("student", str(path), problem, "Export it again") from None
    (name, *others) = [given.name for given in session.get_inputs()]
    if others or len(session.get_outputs()) != 1:
        raise InputError("student", str(path), "has other inputs or outputs than a student", "Export it again")
    versions = [entry.version for entry in _opsets(path) if entry.domain == ""]
    return Exported(path, lambda pixels: np.asarray(session.run(None, {name: pixels})[0]), max(versions, default=0))


def _opsets(path: Path) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False).opset_import


def metadata_of(path: Path) -> dict[str, str]:
    """What `to_onnx` wrote about a student."""
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


def to_pt2(student: Shipped, path: Path, *, probabilities: bool = False) -> Exported:
    """Write torch.export's archive, with an open batch size.

    Raises:
        InputError: the network cannot be traced.
    """
    import torch

    program = traced(final(student, probabilities), student.inputs.image_shape, student.model)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return Exported(path, eager(program.module()))


def traced(model: nn.Module, image_shape: tuple[int, int, int], name: str) -> ExportedProgram:
    """A network as torch.export's graph, with an open batch size.

    Args:
        model: in evaluation mode, on the CPU.
        image_shape: (C, H, W).
        name: of the network, for the message.

    Raises:
        InputError: it cannot be traced.
    """
    import torch

    with _quiet(), _tracing(name):
        shapes = ({0: torch.export.Dim("batch")},)
        return torch.export.export(model, (torch.zeros((2, *image_shape)),), dynamic_shapes=shapes)


def to_int8(source: Exported, path: Path, calibration: Pixels) -> Exported:
    """Quantise an ONNX file: weights and activations in 8 bits, by onnxruntime's static quantisation.

    Weights keep to 7 bits: where a processor has no VNNI, sums of two products of 8 bits overflow, and answers are wrong.

    Args:
        calibration: (N, C, H, W) training images in 0..1, from which the ranges of activations are read.

    Raises:
        InputError: onnxruntime cannot quantise it.
    """
    require_onnx()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([calibration[i : i + 32] for i in range(0, len(calibration), 32)])

        def get_next(self) -> dict[str, Pixels] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    def write(temporary: Path) -> None:
        try:
            with _quiet():
                quantization.quantize_static(str(source.path), str(temporary), Reader(), per_channel=True, reduce_range=True)
        except Exception as error:
            if isinstance(error, (OSError, MemoryError)) or disk_full(error, [path.parent]):
                raise
            problem = f"cannot be made of this network by onnxruntime ({type(error).__name__}: {_words(error)})"
            raise InputError("format", "int8", problem, "Take onnx") from error

    atomically(path, write)
    return open_onnx(path)


@contextlib.contextmanager
def _tracing(model: str) -> Iterator[None]:
    """Say it in words where a network cannot be traced."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the tracer meets the user's own code
        raise InputError(
            "student",
            model,
            f"cannot be traced by torch.export ({type(error).__name__}: {_words(error)})",
            "Its forward must not depend on what is in the images",
        ) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' progress and warnings off the screen: what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def in_batches(answers: Answers, pixels: Pixels) -> Pixels:
    """Answers to any number of images."""
    return np.concatenate([answers(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)])


def difference(expected: Pixels, found: Pixels) -> float:
    """The largest difference between answers, as a part of the largest answer."""
    return float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))


def latency_ms(answers: Answers, image_shape: tuple[int, int, int], *, repeats: int = 100, seconds: float = 1.0) -> float:
    """Median time of one image, in milliseconds."""
    image = np.zeros((1, *image_shape), np.float32)
    for _ in range(3):
        answers(image)
    times: list[float] = []
    began = time.perf_counter()
    while not times or (len(times) < repeats and time.perf_counter() - began < seconds):
        started = time.perf_counter()
        answers(image)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))
