"""A pretended device: carries out what is asked of its tensors, refuses what a GPU refuses, and keeps the books."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.pretended_gpu.kernels import INDEXING, WITHOUT_KERNEL, compute, waits
from tests.helpers.pretended_gpu.ledger import Ledger
from tests.helpers.pretended_gpu.memory import DeviceMemory, PinnedMemory
from tests.helpers.pretended_gpu.nested import mapped, tensors_in
from tests.helpers.pretended_gpu.tensor import CUDA, OnDevice
from tests.helpers.pretended_gpu.transfers import Transfers

aten = torch.ops.aten


class Device:
    """See the module. `ledger`: what was asked; `memory`: what lives there; `capture`: operations being recorded."""

    def __init__(self, *, values: bool, limit: int | None) -> None:
        """`values`: whether anything is computed, or shapes alone; `limit`: bytes of memory."""
        self.inner_device = torch.device("cpu" if values else "meta")
        self.ledger = Ledger()
        self.memory = DeviceMemory(limit)
        self.pinned = PinnedMemory()
        self.transfers = Transfers()
        self.capture: list[tuple[Any, str, Any, Any, list[Tensor]]] | None = None

    def forget(self) -> None:
        """Clear the ledger; the peak of memory begins at what lives now."""
        self.ledger.clear()
        self.memory.start_peak()

    def wait(self, op: str, until: int | None = None) -> None:
        """The caller waits for the device, which a recorded graph cannot hold."""
        self._refuse_in_capture(op)
        self.ledger.note("wait", op)
        self.transfers.end(until)

    def wrap(self, inner: Tensor) -> OnDevice:
        """The tensor of the device around one of another; raises torch.OutOfMemoryError."""
        found = OnDevice(inner, self)
        self.memory.hold(found, inner)
        return found

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Any operation of PyTorch that is asked for while the device is there, on its tensors or not."""
        name = func._schema.name
        if is_composite(func):
            # Reached here without gradients: is made of others.
            with Everywhere(self):
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        tensors = tensors_in((args, kwargs))
        here = [x for x in tensors if isinstance(x, OnDevice)]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        # What is wrapped are plain tensors, whatever mode they are made in.
        with torch.inference_mode(False), torch.no_grad():
            if not here and (wanted is None or wanted.type != CUDA.type):
                return self._in_main_memory(func, name, args, kwargs)
            if name == "aten::_to_copy" and not here:
                return self._upload(*args, **kwargs)
            if name == "aten::copy_" and len(here) == 1:
                return self._copy(*args, **kwargs)
            if len(here) < len(tensors):
                self._refuse_mixing(name, args, tensors)
            return self._launch(func, name, args, kwargs, here)

    def download(self, source: OnDevice, dtype: torch.dtype, *, non_blocking: bool) -> Tensor:
        """A copy in main memory: in pinned memory if it is not waited for, as PyTorch has it."""
        assert not (source.requires_grad and torch.is_grad_enabled()), "gradients do not cross"
        target = torch.empty(source.shape, dtype=dtype, pin_memory=non_blocking)
        with torch.inference_mode(False), torch.no_grad():
            return self._copy(target, source, non_blocking)

    def like_elsewhere(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`empty_like(x, device="cpu")` and the like."""
        shapes = mapped(lambda x: x.wrapped.to("meta") if isinstance(x, OnDevice) else x, args)
        return func(*shapes, **kwargs)

    def _in_main_memory(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "aten::is_pinned":
            return args[0] in self.pinned
        if name == "aten::_pin_memory":
            return self.pinned.add(args[0].clone(memory_format=torch.contiguous_format))
        pin = kwargs.get("pin_memory")
        found = func(*args, **{**kwargs, "pin_memory": False}) if pin else func(*args, **kwargs)
        return self.pinned.add(found) if pin else found

    def _upload(self, source: Tensor, *, device: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        self._note_upload("to", source, non_blocking)
        asked = {key: kwargs[key] for key in ("dtype", "memory_format") if kwargs.get(key) is not None}
        there = source.to(self.inner_device, copy=True)
        return self.wrap(there.to(**asked) if asked else there)

    def _note_upload(self, op: str, source: Tensor, non_blocking: bool) -> None:
        self._refuse_in_capture(op)
        how = "pageable" if source not in self.pinned else "async" if non_blocking else "blocking"
        self.ledger.note("upload", op, how=how, bytes=source.nbytes)

    def _refuse_in_capture(self, op: str) -> None:
        if self.capture is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({op})")

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, OnDevice):
            self._note_upload("copy_", source, non_blocking)
            target.wrapped.copy_(source.to(self.inner_device))
            return target
        assert isinstance(source, OnDevice)
        how = "pageable" if target not in self.pinned else "async" if non_blocking else "blocking"
        self.ledger.note("download", "copy_", how=how, bytes=source.nbytes)
        if source.wrapped.is_meta:
            target.zero_()
        else:
            self.transfers.begin(target, source.wrapped.to(target.dtype))
        if how != "async":
            self.wait("copy_")
        return target

    def _refuse_mixing(self, name: str, args: Any, tensors: list[Tensor]) -> None:
        """RuntimeError for operands on two devices, but for numbers and index tensors, which CUDA moves by itself."""
        strangers = [x for x in tensors if not isinstance(x, OnDevice) and x.dim()]
        if name in INDEXING and isinstance(args[0], OnDevice):
            places = [x for x in args[1] if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
            for place in places:
                self.ledger.note("implicit upload", name, how="pageable", bytes=place.nbytes)
                self.wait(f"{name} by places in main memory")
            strangers = [x for x in strangers if not any(x is place for place in places)]
        if strangers:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name}: {[(str(x.device), tuple(x.shape)) for x in tensors]})"
            )

    def _launch(self, func: Any, name: str, args: Any, kwargs: Any, here: list[OnDevice]) -> Any:
        if waits(name, args, kwargs):
            self.wait(name)
        if self.inner_device.type == "meta" and name == "aten::_local_scalar_dense":
            return 1.0 if args[0].is_floating_point() else 1
        args, kwargs = mapped(self._inner, (args, kwargs))
        kwargs.pop("pin_memory", None)
        if "device" in kwargs:
            kwargs["device"] = self.inner_device
        found = compute(func, name, args, kwargs)
        outputs = tensors_in(found)
        is_view = gives_views(func)
        if not is_view and name not in WITHOUT_KERNEL:
            touched = [*(x.wrapped for x in here), *outputs]
            moved = sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in touched)
            largest = max((x.numel() for x in touched), default=0)
            self.ledger.note("kernel", name, bytes=moved, largest=largest)
        if not is_view and self.capture is not None:
            self.capture.append((func, name, args, kwargs, outputs))
        known = {id(x.wrapped): x for x in here}

        def outside(x: Any) -> Any:
            if id(x) in known:
                return known[id(x)]
            return self.wrap(x) if isinstance(x, Tensor) else x

        return mapped(outside, found)

    def _inner(self, x: Any) -> Any:
        if isinstance(x, OnDevice):
            return x.wrapped
        on_meta = isinstance(x, Tensor) and self.inner_device.type == "meta" and x.dim() > 0
        return x.to("meta") if on_meta else x


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operation is made of others, for all devices."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def gives_views(func: Any) -> bool:
    """Whether all that an operation returns lies in the memory of its arguments, and it writes nothing."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info and not r.alias_info.is_write for r in returns)


class Everywhere(TorchDispatchMode):
    """Operations that have no tensor of the device among their arguments go to it, too: they may make one."""

    def __init__(self, gpu: Device) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})
