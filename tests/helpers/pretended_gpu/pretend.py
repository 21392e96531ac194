"""`with pretend_cuda() as gpu:` torch believes in one GPU; see the package."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.images import patches
from tests.helpers.pretended_gpu.device import Device, Everywhere
from tests.helpers.pretended_gpu.driver import Generator, Properties, replacements
from tests.helpers.pretended_gpu.nested import mapped
from tests.helpers.pretended_gpu.tensor import CUDA, OnDevice


@contextlib.contextmanager
def pretend_cuda(
    *,
    values: bool = True,
    memory: int | None = None,
    name: str = "Pretended GPU",
    capability: tuple[int, int] = (9, 0),
) -> Iterator[Device]:
    """One GPU for this thread and for all that are started inside.

    `values` False: shapes alone, so that the largest models cost nothing. `memory`: bytes beyond which memory runs out.
    Skips the test where there is a real GPU, which the tests marked `gpu` are for.
    """
    if torch.cuda.is_available():
        pytest.skip("has a real GPU")
    torch._C._ensureCUDADeviceGuardSet()  # for the twins of autocast
    gpu = Device(values=values, limit=memory)
    properties = Properties(name, *capability, total_memory=80 * 2**30)
    run_thread, load = threading.Thread.run, torch.load

    def run_in_mode(thread: threading.Thread) -> None:
        with _only_lifting(), Everywhere(gpu):
            run_thread(thread)

    def load_onto(file: Any, *, map_location: Any = None, **options: Any) -> Any:
        assert map_location is not None, "a file of a GPU's tensors: where to?"
        found = load(file, map_location="cpu", **options)
        if torch.device(map_location).type != CUDA.type:
            return found
        return mapped(lambda x: x.to(CUDA) if isinstance(x, Tensor) else x, found)

    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        # Models as small as those of tests lose by a second thread.
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        for attribute, stand_in in replacements(gpu, properties).items():
            stack.enter_context(mock.patch.object(torch.cuda, attribute, stand_in))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "load", load_onto))
        stack.enter_context(mock.patch.object(threading.Thread, "run", run_in_mode))
        stack.enter_context(_parameters())
        stack.enter_context(_only_lifting())
        stack.enter_context(Everywhere(gpu))
        stack.callback(_forget_constants)
        yield gpu


@contextlib.contextmanager
def _parameters() -> Iterator[None]:
    """Parameters may be of the device: modules take them as they are, optimisers in groups as they do on GPUs."""
    supported = sys.modules["torch.optim.optimizer"]._foreach_supported_types
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    group = torch._C._group_tensors_by_device_and_dtype

    def group_by_label(lists: Any, with_indices: bool = False) -> Any:
        found = group(lists, with_indices)
        return {
            (CUDA if isinstance(grouped[0][0], OnDevice) else device, dtype): (grouped, indices)
            for (device, dtype), (grouped, indices) in found.items()
        }

    supported.append(OnDevice)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", group_by_label):
            yield
    finally:
        supported.remove(OnDevice)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


@contextlib.contextmanager
def _only_lifting() -> Iterator[None]:
    """`torch.tensor(data, device="cuda")` asks the device, not the driver."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _forget_constants() -> None:
    """Tensors of the device that the project keeps for good."""
    for function in vars(patches).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()
