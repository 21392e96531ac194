"""Faults of a GPU or its driver: told from others, and cards that torch cannot use, or that differ; none is here."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchsieve.pipeline.compute import gpu_faults, precision
from patchsieve.pipeline.compute.gpu_faults import (
    DECLARED_GPUS,
    assigned_device,
    check_native,
    device_fault,
    device_faults,
)
from patchsieve.pipeline.errors import DeviceError, InfrastructureError, UserError
from patchsieve.pipeline.row_config import Precision

CUDA = torch.device("cuda")
ILLEGAL = """CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL),
        torch.AcceleratorError("HIP error: unspecified launch failure"),
        torch.AcceleratorError("a text that nobody has seen yet"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...)`"),
        RuntimeError("CUDA driver error: unspecified launch failure"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph."),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 12020)."),
        RuntimeError("No CUDA GPUs are available"),
    ],
)
def test_faults_of_the_device(error: Exception) -> None:
    told = device_fault(error)
    assert told == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    with pytest.raises(DeviceError) as raised, device_faults():
        raise error
    assert str(raised.value) == told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        InfrastructureError("s3://bucket/CUDA error: a folder/0.tar cannot be read"),
        OSError("CUDA error: an odd name.tar"),
        ValueError("CUDA error"),
        UserError("precision fp16 needs a GPU; processors have bf16 and fp32"),
    ],
)
def test_other_errors(error: Exception) -> None:
    assert device_fault(error) is device_fault(error, memory=True) is None
    with pytest.raises(type(error)) as raised, device_faults():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_is_a_fault_only_while_an_actor_starts(error: Exception) -> None:
    assert device_fault(error) is None
    assert device_fault(error, memory=True) is not None


def test_without_a_gpu_the_machines_ones_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assigned_device(()) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_gpu_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-41b3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert assigned_device(["MIG-41b3"]) == CUDA
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-41b3"


@pytest.mark.parametrize(
    ("cuda", "driver", "refusal", "parts"),
    [
        (
            "13.2",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n",
            "The NVIDIA driver on your system is too old (found version 12020). Please update it",
            [
                "built for CUDA 13.2, the driver is 535.104.05 (The NVIDIA driver on your system is too old (found "
            ],
        ),
        ("13.2", None, "Found no NVIDIA driver on your system.", ["no NVIDIA driver is loaded"]),
        (None, "Kernel Module  580.65", "", ["it is built for processors alone"]),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    cuda: str | None,
    driver: str | None,
    refusal: str,
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError(refusal)

    if driver is not None:
        (tmp_path / "version").write_text(driver)
    monkeypatch.setattr(gpu_faults, "_KERNEL_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv(DECLARED_GPUS)
    with pytest.raises(DeviceError, match="cannot use the GPU that was assigned") as raised:
        assigned_device(["0"])
    for part in [f"torch {torch.__version__}", "--gpus-per-actor 0", *parts]:
        assert part in str(raised.value)
    # Tests alone may do without.
    monkeypatch.setenv(DECLARED_GPUS, "cpu")
    assert assigned_device(["0"]) == torch.device("cpu")
    monkeypatch.setenv(DECLARED_GPUS, "1")
    with pytest.raises(DeviceError):
        assigned_device(["0"])


CARDS = {
    "Tesla V100-SXM2-16GB": (7, 0),
    "Tesla T4": (7, 5),
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb": (8, 0),
    "NVIDIA L4": (8, 9),
    "NVIDIA H100 80GB HBM3": (9, 0),
    "NVIDIA B200": (10, 0),
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": (12, 0),
}


def pretend(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on torch's questions are answered as if this card were there."""
    major, minor = CARDS[card]
    properties = SimpleNamespace(major=major, minor=minor, name=card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: card)
    monkeypatch.setattr(precision, "synchronise", lambda _: None)


@pytest.mark.parametrize("card", CARDS)
def test_what_auto_tries_on_each_card(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(card, monkeypatch)
    tried: list[Precision] = []

    def make_probe(name: Precision) -> Any:
        tried.append(name)
        # In half precision fp16 overflows here, and bf16 does not.
        return lambda: torch.full((4,), float("inf") if name == "fp16" else 1.0)

    chosen = precision.fastest_precision(make_probe, CUDA)
    native = CARDS[card][0] >= 8
    assert tried == ["fp32", "bf16", "fp16"] if native else ["fp32", "fp16"]
    assert chosen in ({"fp32", "bf16"} if native else {"fp32"})


@pytest.mark.parametrize("card", CARDS)
def test_a_card_takes_over_what_another_one_chose_if_it_can(
    card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(card, monkeypatch)
    check_native("fp32", CUDA)
    check_native("fp16", CUDA)
    check_native("bf16", torch.device("cpu"))
    if CARDS[card][0] >= 8:
        check_native("bf16", CUDA)
    else:
        with pytest.raises(DeviceError, match=f"{card} has no bf16 of its own.*leave such GPUs out"):
            check_native("bf16", CUDA)
