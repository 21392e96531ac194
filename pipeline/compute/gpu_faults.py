"""Faults of a GPU or its driver: told from those of data and memory, and found before any work begins.

After most CUDA errors (an illegal access, an uncorrectable memory error, a failed launch) the process cannot use its
GPU any more, whatever it does next: only another process can.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from patchsieve.pipeline.compute.batch_size import is_out_of_memory
from patchsieve.pipeline.errors import DeviceError, first_line
from patchsieve.pipeline.row_config import Precision

DECLARED_GPUS = "PATCHSIEVE_DECLARED_GPUS"
"""Environment variable for tests: where it is `cpu`, a GPU that Ray was told of need not exist, and its actor works on
the processor."""

_KERNEL_DRIVER = Path("/proc/driver/nvidia/version")

# What torch 2.9 to 2.15 and Triton say. Errors of CUDA's runtime are AcceleratorError as well; those of the driver, of
# cuBLAS, cuDNN and compiled kernels are plain RuntimeErrors.
_SIGNS = re.compile(
    r"\b(cuda|hip) (driver |driver api |nvrtc )?error\b|\bcuda (unknown error|driver initialization failed)"
    r"|\bcudnn (frontend |sdpa )?(error|execution failed)|\btriton error \[(cuda|hip)\]"
    r"|\bno nvidia driver\b|\bnvidia driver on your system\b|\bno (cuda|hip) gpus are available\b",
    re.IGNORECASE,
)


def device_fault(error: BaseException, *, memory: bool = False) -> str | None:
    """The line that tells of a fault of the GPU or its driver; None where an error is another one.

    `memory`: whether GPU memory that runs out is one: while an actor starts it is, since no shard is at work.
    """
    if isinstance(error, torch.OutOfMemoryError):
        found = memory
    else:
        told = isinstance(error, RuntimeError) and _SIGNS.search(str(error)) is not None
        found = (told or isinstance(error, torch.AcceleratorError)) and (
            memory or not is_out_of_memory(error)
        )
    return f"{type(error).__name__}: {first_line(error)}" if found else None


@contextlib.contextmanager
def device_faults(*, memory: bool = False) -> Iterator[None]:
    """In the block, a fault of the GPU or its driver becomes a DeviceError; `memory`: see `device_fault`."""
    try:
        yield
    except Exception as error:
        fault = device_fault(error, memory=memory)
        if fault is None:
            raise
        raise DeviceError(fault) from error


def assigned_device(gpus: Sequence[str]) -> torch.device:
    """The device of an actor that the cluster gave these GPUs; for this process alone, and before it uses any.

    Without any it is the processor, and the machine's GPUs are hidden: Ray leaves them visible, and all actors would
    share the first one. Raises DeviceError where torch cannot use the GPU that was given.
    """
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get(DECLARED_GPUS) == "cpu":
        return torch.device("cpu")
    raise DeviceError(
        f"torch {torch.__version__} cannot use the GPU that was assigned: {_why_unusable()}; install a torch that fits "
        "the driver, or ask for none: --gpus-per-actor 0, in train --gpus-per-worker 0"
    )


def check_native(precision: Precision, device: torch.device) -> None:
    """DeviceError for a GPU that has no arithmetic of its own for a precision that an output is already in."""
    if (
        precision != "bf16"
        or device.type != "cuda"
        or torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        return
    raise DeviceError(
        f"{torch.cuda.get_device_name(device)} has no bf16 of its own, in which this output's rows are: leave such "
        "GPUs out, or give a new output --precision fp16 or fp32"
    )


def _why_unusable() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "it is built for processors alone"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"it is built for {built}, {_driver()} ({_refusal()})"


def _driver() -> str:
    """NVIDIA's kernel module, by its version."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _KERNEL_DRIVER.read_text())
    except OSError:
        found = None
    return f"the driver is {found[0]}" if found else "no NVIDIA driver is loaded"


def _refusal() -> str:
    """What torch says of it: the first sentence."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:
        return first_line(error).partition(". ")[0]
    return "it found no device"
