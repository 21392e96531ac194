"""The device of this process: which one it is, its name, waiting for it, and how the process keeps freed memory."""

from __future__ import annotations

import ctypes
import platform

import torch

# Parameters of `mallopt`, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_SETTINGS = {
    _MMAP_MAX: 0,
    _TRIM_THRESHOLD: 2**31 - 1,
    # Threads that have heaps of their own before this is called keep these whole, too: a heap has 64 MB, and is
    # unmapped only where more than this would be left free.
    _TOP_PAD: 2**28,
    _ARENA_MAX: 1,
}


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the next batch; False where it is not glibc, and nothing is changed.

    By default glibc maps large blocks one by one and gives them back at once, and gives back the heaps of threads.
    Every batch then pays for new pages, which the kernel fills with zeros (docs/performance.md tells what that takes).
    Without mappings, trimming and heaps of single threads, a process holds what it has needed at most: for processes
    that do one thing only, and before they begin. Source: the manual page of mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    for parameter, value in _SETTINGS.items():
        mallopt(parameter, value)
    return True


def this_device() -> torch.device:
    """The GPU, where torch can use one: Ray sets CUDA_VISIBLE_DEVICES for declared GPUs that need not exist."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Kind and model of a device of this machine, for the record."""
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return f"{device.type} {model}"


def short_name(device: torch.device) -> str:
    """The model of a GPU, or with how many threads this process works on a processor: for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'' if threads == 1 else 's'}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
