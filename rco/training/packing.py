"""Nested values with tensors in them, taken apart into JSON and tensors by name, and put together again, without a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TENSOR = "$tensor"


def packed(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    """`value` as JSON, its tensors and arrays put into `tensors` under their paths."""
    import numpy as np
    import torch

    if isinstance(value, (torch.Tensor, np.ndarray)):
        tensors[path] = torch.as_tensor(value)
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): packed(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [packed(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def unpacked(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {key: unpacked(item, tensors) for key, item in value.items()}
    return [unpacked(item, tensors) for item in value] if isinstance(value, list) else value
