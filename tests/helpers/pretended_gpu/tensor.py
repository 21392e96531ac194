"""The tensors of a pretended device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.pretended_gpu.autocast import as_autocast_has_it
from tests.helpers.pretended_gpu.kernels import attention
from tests.helpers.pretended_gpu.nested import tensors_in

if TYPE_CHECKING:
    from tests.helpers.pretended_gpu.device import Device

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class OnDevice(Tensor):
    """A tensor of the device, around one in main memory or of the device `meta`, `wrapped`.

    PyTorch's own code takes it for one of the inner's device, so that gradients need no driver, and means this one
    where it says so; whatever asks in Python is told `cuda:0`. Each operation goes to the device.
    """

    wrapped: Tensor
    gpu: Device

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: Device) -> OnDevice:
        assert not isinstance(inner, OnDevice)
        made = Tensor._make_subclass(cls, inner, False, device_for_backend_keys=CUDA)
        found: OnDevice = made
        found.wrapped, found.gpu = inner, gpu
        return found

    def __init__(self, inner: Tensor, gpu: Device) -> None:
        """See the class."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = as_autocast_has_it(func, args, kwargs or {}, cls)
            elsewhere = kwargs.get("device")
            if elsewhere is not None and torch.device(elsewhere).type != CUDA.type:
                return gpu_of(args, kwargs).like_elsewhere(func, args, kwargs)
            if func is functional.scaled_dot_product_attention:
                return attention(*args, **kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return gpu_of(args, kwargs).run(func, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `Tensor.to`; PyTorch's would think that a copy in main memory is not needed."""
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        parsed: Any = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype, non_blocking, memory_format = parsed
        if device is not None and device.type != CUDA.type:
            return self.gpu.download(self, dtype or self.dtype, non_blocking=non_blocking)
        if dtype in (None, self.dtype) and not copy:
            return self
        return aten._to_copy(self, dtype=dtype, memory_format=memory_format)

    def cpu(self, *_args: Any, **_named: Any) -> Tensor:
        """A copy in main memory, waited for."""
        found: Tensor = self.to("cpu")
        return found

    def tolist(self) -> Any:
        """By way of main memory."""
        return self.cpu().tolist()

    def numpy(self, *_args: Any, **_named: Any) -> Any:
        """What CUDA says."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            found = self.detach().clone()
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(found, self.requires_grad) if is_parameter else found
        return memo[id(self)]


def gpu_of(args: Any, kwargs: Any) -> Device:
    """The device of the tensors among the arguments."""
    return next(x.gpu for x in tensors_in((args, kwargs)) if isinstance(x, OnDevice))
