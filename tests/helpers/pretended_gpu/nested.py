"""Arguments and results of operations: tensors in tuples, lists and dictionaries; PyTorch's own walk takes longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The value with the function's result in place of each leaf."""
    if isinstance(value, tuple):
        return tuple(mapped(function, part) for part in value)
    if isinstance(value, list):
        return [mapped(function, part) for part in value]
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    return function(value)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among the leaves, in order."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, dict):
        for part in value.values():
            _gather(part, found)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _gather(part, found)
