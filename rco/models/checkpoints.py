"""The weights in a checkpoint of anyone's training: where they are in the file, and under which names.

A checkpoint holds more than weights: optimisers, schedulers, arguments, averaged weights beside the raw ones. Its mappings of
names to tensors are compared with the names and shapes that a network expects, in all wrappers, and without the prefixes that
trainers put before names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.core.pickles import Global, Inert
from rco.core.tensors import load_state
from rco.core.torch_files import StoredTensor, TorchFileError, read_torch_file
from rco.core.words import counted

if TYPE_CHECKING:
    from torch import Tensor

_MOST_DEPTH, _MOST_PLACES = 4, 1000  # of dicts in dicts that are looked at
_MOST_PREFIX = 8  # parts of a prefix
_AVERAGED = re.compile(r"(^|[_.])(ema|averaged?|swa|avg)([_.]|$)", re.IGNORECASE)
_OPTIMIZER = re.compile(r"optim|momentum_buffer|exp_avg", re.IGNORECASE)
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_COUNTER = "num_batches_tracked"
_REMEDY = "Save model.state_dict(), best as safetensors"

#: By name, what has a shape.
Shaped = Mapping[str, Any]


class OtherClassesError(InputError):
    """Weights of the same network for another number of classes."""


@dataclass(frozen=True)
class Weights:
    """The weights that were found for a network.

    Attributes:
        state: by the names that were expected.
        place: where they are in the file, `model_ema.state_dict`; empty: at its top.
        prefix: what was taken off every name.
        notes: what to tell the user, a sentence each.
    """

    state: dict[str, Tensor]
    place: str = ""
    prefix: str = ""
    notes: tuple[str, ...] = ()


def read_content(path: Path) -> Any:
    """All of a checkpoint: a dict of tensors for safetensors, else what `read_torch_file` yields.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint.
    """
    if path.suffix == ".safetensors":
        return load_state(path)[0]
    if not path.is_file():
        raise InputError("checkpoint", str(path), "is missing", "Check the path")
    try:
        return read_torch_file(path)
    except (TorchFileError, OSError) as error:
        raise InputError("checkpoint", str(path), f"cannot be read as plain weights ({error})", _REMEDY) from None


def find_mappings(content: Any) -> dict[str, dict[str, Any]]:
    """The mappings of names to tensors in a checkpoint, by where they are; those of optimisers are left out.

    What else is in such a mapping (an epoch beside the tensors) is left out too. A mapping that is there twice counts once.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, mapping in _dicts(content):
        if tensors := {name: value for name, value in mapping.items() if isinstance(name, str) and hasattr(value, "shape")}:
            found[place] = tensors
    return found


def _dicts(content: Any) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The dicts within dicts, the outer ones first; each once, though it may hold itself."""
    waiting, seen = [("", content)], {id(content)}
    for place, mapping in waiting:
        if not isinstance(mapping, dict):
            continue
        yield place, mapping
        for name, inner in mapping.items():
            if isinstance(name, str) and isinstance(inner, dict) and id(inner) not in seen and not _OPTIMIZER.search(name):
                path = f"{place}.{name}" if place else name
                if path.count(".") < _MOST_DEPTH and len(waiting) < _MOST_PLACES:
                    seen.add(id(inner))
                    waiting.append((path, inner))


def find_weights(
    content: Any, expected: Sequence[Shaped], source: object, *, choice: str = "", left_out: tuple[str, ...] = ()
) -> Weights:
    """The weights in a checkpoint that fit a network.

    A prefix that all names share comes off if they fit without it. Counters of batch norms may be missing, as for torch. Where
    raw and averaged weights fit, the raw ones are taken, and a note says so.

    Args:
        content: of `read_content`.
        expected: the network's tensors by name; several if it is known under several sets of names.
        source: the file, for messages.
        choice: where the weights are in the file, for a file with several: `model_ema`; empty: see above.
        left_out: how names begin that the file may have beside those that are expected, such as those of a head.

    Raises:
        InputError: no weights, none that fit, or several; the message says what is nearest.
    """
    places = find_mappings(content)
    if choice:
        if choice not in places:
            known = ", ".join(repr(place) for place in list(places)[:8]) or "nothing"
            raise InputError("weights", choice, f"is not a place in {source} with tensors", f"There is: {known}")
        places = {choice: places[choice]}
    if not places:
        raise InputError("checkpoint", str(source), f"holds no state dict but {_described(content)}", _REMEDY)
    fitting = {
        place: prefix
        for place, mapping in places.items()
        if (prefix := next((p for p in _prefixes(mapping) if any(_fits(mapping, p, e, left_out) for e in expected)), None))
        is not None
    }
    if not fitting:
        _refuse(places, expected, source, left_out)
    raw = [place for place in fitting if not _AVERAGED.search(place)]
    averaged = [place for place in fitting if place not in raw]
    if len(raw or averaged) > 1:
        raise InputError(
            "checkpoint",
            str(source),
            f"holds several networks that fit: {', '.join(map(_shown, (raw or averaged)[:8]))}",
            "Say which is meant",
        )
    place = (raw or averaged)[0]
    prefix = fitting[place]
    wanted = next(e for e in expected if _fits(places[place], prefix, e, left_out))
    stripped = _stripped(places[place], prefix)
    state = {name: _loaded(tensor, source) for name, tensor in stripped.items() if name in wanted}
    _require_kinds(state, wanted, source)
    _require_finite(state, wanted, source)
    notes = _notes(state, wanted, place, prefix, averaged if raw else [])
    return Weights(state, place, prefix, notes)


def read_plainly(content: Any, source: object) -> dict[str, Tensor]:
    """The one state dict in a checkpoint, where no network says which names it should have.

    Raises:
        InputError: there is none, or there are several of which neither is in a wrapper of a usual name.
    """
    places = find_mappings(content)
    raw = [place for place in places if not _AVERAGED.search(place)] or list(places)
    usual = [place for place in raw if place in _WRAPPERS]
    if not raw:
        raise InputError("checkpoint", str(source), f"holds no state dict but {_described(content)}", _REMEDY)
    if len(raw) > 1 and len(usual) != 1:
        shown = ", ".join(map(_shown, raw[:8]))
        raise InputError("checkpoint", str(source), f"holds several state dicts: {shown}", _REMEDY)
    mapping = places[(raw if len(raw) == 1 else usual)[0]]
    prefix = next((p for p in reversed(_prefixes(mapping)) if re.fullmatch(r"((module|_orig_mod)\.)*", p)), "")
    return {name: _loaded(tensor, source) for name, tensor in _stripped(mapping, prefix).items()}


def _prefixes(mapping: Shaped) -> list[str]:
    """The empty prefix, and those that all names share, the shorter ones first."""
    names = [name for name in mapping if name != "n_averaged"]  # torch's AveragedModel counts beside its "module."
    parts = min(names, default="").split(".")[:-1][:_MOST_PREFIX]
    prefixes = [""]
    for part in parts:
        prefix = f"{prefixes[-1]}{part}."
        if not all(name.startswith(prefix) for name in names):
            break
        prefixes.append(prefix)
    return prefixes


def _stripped(mapping: Shaped, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in mapping.items()}


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == _COUNTER


def _differences(
    mapping: Shaped, prefix: str, expected: Shaped, left_out: tuple[str, ...] = ()
) -> tuple[list[str], list[str], list[str]]:
    """The names that are missing, that are unknown, and that are there in another shape."""
    given = _stripped(mapping, prefix)
    missing = [name for name in expected if name not in given and not _is_counter(name)]
    extra = [name for name in given if name not in expected and not (name == "n_averaged" and len(given[name].shape) == 0)]
    extra = [name for name in extra if not name.startswith(left_out)] if left_out else extra
    shapes = [name for name in expected if name in given and tuple(given[name].shape) != tuple(expected[name].shape)]
    return missing, extra, shapes


def _fits(mapping: Shaped, prefix: str, expected: Shaped, left_out: tuple[str, ...]) -> bool:
    return not any(_differences(mapping, prefix, expected, left_out))


def _loaded(tensor: Any, source: object) -> Tensor:
    if not isinstance(tensor, StoredTensor):
        loaded: Tensor = tensor  # of safetensors
        return loaded
    try:
        return tensor.load()
    except TorchFileError as error:
        raise InputError("checkpoint", str(source), f"cannot be read as plain weights ({error})", _REMEDY) from None


def _require_kinds(state: Mapping[str, Tensor], expected: Shaped, source: object) -> None:
    """Refuse what would lose its meaning when it is copied: complex numbers, and integers for weights."""
    wrong = [name for name, tensor in state.items() if _kind(tensor) != _kind(expected[name])]
    if wrong:
        shown = f"{wrong[0]} is {_type(state[wrong[0]])}"
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError("weights", str(source), f"are numbers of another kind: {shown}{more}", "Save them as float32")


def _require_finite(state: Mapping[str, Tensor], expected: Shaped, source: object) -> None:
    """Refuse the weights of a training that diverged, or too large for the network's type: a student learns NaN."""
    wrong = [name for name, tensor in state.items() if not bool(tensor.to(expected[name].dtype).isfinite().all())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(
            "weights", str(source), f"are not finite numbers: {wrong[0]}{more} has NaN or infinity", "Use an earlier checkpoint"
        )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _notes(state: Mapping[str, Tensor], expected: Shaped, place: str, prefix: str, averaged: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if averaged:
        notes.append(f"the raw weights ({_shown(place)}) are taken; there are averaged ones, too ({', '.join(averaged)})")
    elif _AVERAGED.search(place):
        notes.append(f"the weights are averaged ones ({place})")
    if prefix:
        notes.append(f"{prefix!r} before every name was taken off")
    if missing := [name for name in expected if name not in state]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        notes.append(f"counters of batch norms that are not there stay as they are: {missing[0]}{more}")
    cast = sorted({_type(tensor) for name, tensor in state.items() if tensor.dtype != expected[name].dtype})
    if cast:
        notes.append(f"weights in {', '.join(cast)} become the network's type")
    return tuple(notes)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shown(place: str) -> str:
    return place or "at the top"


def _refuse(places: Mapping[str, Shaped], expected: Sequence[Shaped], source: object, left_out: tuple[str, ...]) -> None:
    """Say how the nearest weights differ.

    Raises:
        InputError: always; OtherClassesError if only the classes do.
    """

    def nearness(found: tuple[str, str, Shaped]) -> tuple[int, int]:
        place, prefix, wanted = found
        missing, _, shapes = _differences(places[place], prefix, wanted, left_out)
        return len(wanted) - len(missing), -len(shapes)

    every = [(place, prefix, wanted) for place in places for prefix in _prefixes(places[place]) for wanted in expected]
    place, prefix, wanted = max(every, key=nearness)
    missing, extra, shapes = _differences(places[place], prefix, wanted, left_out)
    given = _stripped(places[place], prefix)
    where = f" (in {place})" if place else ""
    if not missing and not extra and (classes := _classes(given, wanted, shapes)):
        theirs, ours, layer = classes
        raise OtherClassesError(
            "weights",
            str(source),
            f"are for {counted(theirs, 'class', 'classes')}, and the network is for {ours}: {layer} has "
            f"{_size(given[f'{layer}.weight'])} in place of {_size(wanted[f'{layer}.weight'])}{where}",
            "Use weights that were trained on these classes, or the data set of these weights",
        )
    different = [f"{name}: {_size(given[name])} for {_size(wanted[name])}" for name in shapes]
    for problem, names in (("lacks", missing), ("has unknown", extra), ("has other shapes:", different)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(
                "weights",
                str(source),
                f"{problem} {shown}{where}{_beginnings(extra)}",
                "They belong to another model, class count or image size",
            )
    raise AssertionError("what does not fit differs")


def _classes(given: Shaped, expected: Shaped, shapes: Sequence[str]) -> tuple[int, int, str] | None:
    """Their classes, ours, and the layer, if only the network's last layer differs, and only in its outputs."""
    layers = {name.rpartition(".")[0] for name in shapes}
    last = next((name.rpartition(".")[0] for name in reversed(list(expected)) if name.endswith(".weight")), "")
    weight = f"{last}.weight"
    if layers != {last} or weight not in shapes:
        return None
    if any(tuple(given[name].shape)[1:] != tuple(expected[name].shape)[1:] or not given[name].shape for name in shapes):
        return None
    return int(given[weight].shape[0]), int(expected[weight].shape[0]), last


def _beginnings(names: Sequence[str]) -> str:
    """How names begin that share no prefix, such as of a student and its teacher in one mapping."""
    first = [".".join(name.split(".")[:2]) for name in names if name.count(".") > 2]
    kinds = sorted(set(first))
    return f"; names begin with {' and '.join(kinds)}" if 1 < len(kinds) <= 3 else ""


def _size(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _described(content: Any) -> str:
    """What a checkpoint is, where it is no state dict."""
    if isinstance(content, (Inert, Global)):
        return f"an object of {content.name}"
    if isinstance(content, dict):
        names = [name for name in content if isinstance(name, str)]
        if objects := [f"{name} (an object of {content[name].name})" for name in names if isinstance(content[name], Inert)]:
            return f"{counted(len(content), 'entry', 'entries')}, among them {', '.join(objects[:3])}"
        return f"{counted(len(content), 'entry', 'entries')}: {', '.join(names[:5])}"
    return f"a {type(content).__name__}"
