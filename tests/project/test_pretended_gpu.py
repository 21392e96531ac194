"""The pretended GPU refuses what a real one refuses, and counts what it does."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.pretended_gpu.device import Device
from tests.helpers.pretended_gpu.ledger import Crossings
from tests.helpers.pretended_gpu.pretend import pretend_cuda
from tests.helpers.pretended_gpu.tensor import OnDevice

CUDA = torch.device("cuda")


def test_tensors_say_where_they_are(gpu: Device) -> None:
    x = torch.ones(3, device="cuda")
    assert (x.device, x.is_cuda, x.is_cpu) == (torch.device("cuda:0"), True, False)
    made = torch.zeros_like(x), x.new_ones(2), x[:2], torch.arange(3, device=x.device), x.double()
    assert all(isinstance(value, OnDevice) for value in made)
    assert x.to("cuda") is x
    assert type(x.cpu()) is torch.Tensor


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: x @ y,
        lambda x, y: x.gather(0, y.long()),
        lambda x, y: nn.functional.linear(x, y[None]),
    ],
)
def test_operands_on_two_devices_are_refused(gpu: Device, mix: Any) -> None:
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    mix(x, y.to("cuda"))
    for pair in ((x, y), (y, x)):
        with pytest.raises(RuntimeError, match="found at least two devices"):
            mix(*pair)


def test_memory_of_the_device_is_no_array(gpu: Device) -> None:
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        torch.ones(3, device="cuda").numpy()


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda _: torch.cuda.synchronize(),
    ],
)
def test_who_asks_for_numbers_waits(gpu: Device, ask: Any) -> None:
    x = torch.ones(3, device="cuda")
    gpu.forget()
    ask(x)
    assert gpu.ledger.crossings() == Crossings(waits=1)


def test_copies_are_told_apart(gpu: Device) -> None:
    pinned = torch.ones(4).pin_memory()
    pinned.to("cuda", non_blocking=True)
    pinned.to("cuda")
    torch.ones(4).to("cuda", non_blocking=True)
    torch.tensor([1.0, 2.0], device="cuda")
    assert gpu.ledger.ways("upload") == {"async": 1, "blocking": 1, "pageable": 2}
    assert gpu.ledger.bytes("upload") == 3 * 16 + 8
    x = torch.ones(4, device="cuda")
    x.cpu()
    torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    assert gpu.ledger.ways("download") == {"pageable": 1, "async": 1}


def test_places_in_main_memory_go_up_by_themselves(gpu: Device) -> None:
    x = torch.ones(4, device="cuda")
    gpu.forget()
    assert x[torch.tensor([0, 2])].device == x.device
    assert gpu.ledger.crossings() == Crossings(implicit_uploads=1, waits=1)


def test_results_are_there_once_their_event_is_waited_for(gpu: Device) -> None:
    first, second = (torch.full((2,), value, device="cuda") for value in (1.0, 2.0))
    targets = [torch.empty(2, pin_memory=True) for _ in range(2)]
    targets[0].copy_(first, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    targets[1].copy_(second, non_blocking=True)
    assert targets[0].isnan().all()
    event.synchronize()
    assert targets[0].tolist() == [1.0, 1.0]
    assert targets[1].isnan().all()
    torch.cuda.synchronize()
    assert targets[1].tolist() == [2.0, 2.0]


def test_memory_is_counted_and_runs_out() -> None:
    with pretend_cuda(memory=10_000) as gpu:
        x = torch.zeros(1000, device="cuda")
        view = x[:10]
        assert gpu.memory.live == 4000
        del x
        assert gpu.memory.live == 4000, "a view holds on to it"
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(2000, device="cuda")
        del view
        assert (gpu.memory.live, gpu.memory.peak) == (0, 4000)


def test_threads_take_part(gpu: Device) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(torch.ones(2, device="cuda").sum()))
    thread.start()
    thread.join()
    assert isinstance(found[0], OnDevice)
    assert float(found[0]) == 2.0


def test_gradients_are_those_of_a_processor(gpu: Device) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    model(x).double().square().sum().backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model.to("cuda")
    model(x.to("cuda")).double().square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert isinstance(parameter.grad, OnDevice)
        torch.testing.assert_close(parameter.grad.cpu(), gradient)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_has_the_types_that_pytorch_gives_on_gpus(gpu: Device, half: torch.dtype) -> None:
    layer, x = nn.Linear(4, 4).to("cuda"), torch.randn(2, 4, device="cuda")
    with torch.autocast("cuda", half):
        z = layer(x)
        found = [z, z @ z.t(), z.relu(), z.softmax(-1), nn.functional.layer_norm(z, (4,)), z.sum(), x + z]
    assert [value.dtype for value in found] == [half] * 3 + [torch.float32] * 4
    assert layer(x).dtype == torch.float32


def test_attention_is_one_kernel(gpu: Device) -> None:
    x = torch.randn(2, 3, 5, 8)
    expected = nn.functional.scaled_dot_product_attention(x, x, x)
    for dtype, kernel in ((torch.float16, "flash"), (torch.float32, "efficient")):
        y = x.to("cuda", dtype)
        gpu.forget()
        found = nn.functional.scaled_dot_product_attention(y, y, y)
        assert [record.op for record in gpu.ledger.of("kernel")] == [
            f"aten::_scaled_dot_product_{kernel}_attention"
        ]
        torch.testing.assert_close(found.cpu().float(), expected, rtol=1e-2, atol=1e-2)


def test_nothing_of_it_is_left() -> None:
    with pretend_cuda():
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    assert type(torch.ones(1)) is torch.Tensor


def test_a_real_gpu_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="has a real GPU"), pretend_cuda():
        pass
