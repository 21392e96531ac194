"""Recorded functions on a pretended GPU, whose graphs launch the same operations on the same tensors again."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.compute.recorded import Recorded
from tests.helpers.pretended_gpu.device import Device

CUDA = torch.device("cuda")


def a_function(x: Tensor, y: Tensor) -> Tensor:
    """Views, results and changes in place."""
    total = (x.float()[:, None] * y).flatten(1)
    total[:, 0].add_(1.0)
    return total.softmax(-1).sub_(x[:, :1])


def values(seed: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, 4), dtype=torch.uint8, generator=made)
    return [pixels.pin_memory(), torch.rand(3, 2, 4, generator=made).pin_memory()]


def test_every_call_is_one_launch_that_overwrites_the_last_result(gpu: Device) -> None:
    recorded = Recorded(a_function, values(0), CUDA)
    gpu.forget()
    results = [recorded(*values(seed)) for seed in (1, 2)]
    assert results[0] is results[1]
    assert [record.op for record in gpu.ledger.of("kernel")] == ["graph"] * 2
    assert gpu.ledger.ways("upload") == {"async": 4}
    assert not gpu.ledger.of("wait", "download")
    torch.testing.assert_close(results[1].cpu(), a_function(*values(2)))


def test_what_was_recorded_with_is_left_alone(gpu: Device) -> None:
    given = [value.to(CUDA) for value in values(0)]
    before = [value.cpu() for value in given]
    recorded = Recorded(a_function, given, CUDA)
    recorded(*values(1))
    # On the device already, they are the graph's own from now on.
    assert [value.cpu().tolist() for value in given] == [value.tolist() for value in values(1)] != before


def test_a_function_that_waits_cannot_be_recorded(gpu: Device) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        Recorded(lambda x: x * float(x.sum()), [torch.ones(3)], CUDA)


def test_a_graph_holds_its_memory_as_long_as_it_is_there(gpu: Device) -> None:
    before = gpu.memory.live
    recorded = Recorded(lambda x: (x * 2).exp() + 1, [torch.ones(1000)], CUDA)
    # The argument, and two of the three results at a time.
    assert gpu.memory.live - before >= 3 * 4000
    del recorded
    gc.collect()
    assert gpu.memory.live == before
