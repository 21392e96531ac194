"""Which types autocast makes of an operation's arguments: PyTorch's own lists for CUDA, read off what they do.

Its code asks a tensor's device in a place where Python cannot answer. So a twin of the operation, on tensors that have
shapes alone and whose device is `cuda` there too, is run first: what comes out has the type in which to compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.helpers.pretended_gpu.nested import mapped


class Twin(Tensor):
    """A tensor without values whose device is `cuda:0` for PyTorch's own code too; for work without gradients."""

    shaped: Tensor

    @staticmethod
    def __new__(cls, shaped: Tensor) -> Twin:
        made = Tensor._make_wrapper_subclass(
            cls, shaped.shape, strides=shaped.stride(), dtype=shaped.dtype, device=torch.device("cuda", 0)
        )
        found: Twin = made
        found.shaped = shaped
        return found

    def __init__(self, shaped: Tensor) -> None:
        """See the class."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        inner = mapped(lambda x: x.shaped if isinstance(x, Twin) else x, (args, kwargs or {}))
        found = func(*inner[0], **{key: value for key, value in inner[1].items() if key != "device"})
        return mapped(lambda x: Twin(x) if isinstance(x, Tensor) else x, found)


def as_autocast_has_it(
    func: Callable[..., Any], args: Any, kwargs: dict[str, Any], kind: type[Any]
) -> tuple[Any, dict[str, Any]]:
    """The arguments as autocast hands them on: tensors of the device, which are of `kind`, in another type or not."""
    if not torch.is_autocast_enabled("cuda") or not is_listed(func):
        return args, kwargs

    with _disable_current_modes(), torch.no_grad():
        twins = mapped(lambda x: Twin(x.wrapped.to("meta")) if isinstance(x, kind) else x, (args, kwargs))
        wanted = func(*twins[0], **twins[1]).dtype

    def cast(x: Any) -> Any:
        if not isinstance(x, kind) or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(wanted)

    cast_args, cast_kwargs = mapped(cast, (args, kwargs))
    return cast_args, cast_kwargs


@functools.cache
def is_listed(func: Callable[..., Any]) -> bool:
    """Whether autocast for CUDA does anything to an operation, a function or a method of tensors."""
    packet = getattr(torch.ops.aten, getattr(func, "__name__", "").strip("_"), None)
    names = [getattr(packet, overload).name() for overload in packet.overloads()] if packet else []
    return any(
        torch._C._dispatch_has_kernel(name)
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
        for name in names
    )
