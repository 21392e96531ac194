"""What fits into memory, and which batch size pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patchsieve.pipeline.compute.batch_size import available_memory, choose_batch_size, is_out_of_memory
from patchsieve.pipeline.scoring.cost import sequence_bytes
from patchsieve.pipeline.teacher.architecture import TeacherConfig


def curve(seconds: dict[int, float], asked: list[int], room: int = 1000) -> Callable[[int], float]:
    """Seconds per view by batch size; memory runs out above `room`."""

    def measure(size: int) -> float:
        asked.append(size)
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds.get(size, min(seconds.values()))

    return measure


def test_the_smallest_of_the_fast_sizes_is_taken() -> None:
    asked: list[int] = []
    assert choose_batch_size(curve({1: 4, 2: 2, 4: 1, 8: 0.99}, asked), largest=64, budget=1e9) == 4
    assert asked == [1, 2, 4, 8, 16]


def test_one_bad_measurement_does_not_end_the_search() -> None:
    assert choose_batch_size(curve({1: 4, 2: 4.1, 4: 1, 8: 1}, []), largest=64, budget=1e9) == 4


def test_growth_ends_where_memory_does() -> None:
    falling = {2**i: 1 / 2**i for i in range(10)}
    assert choose_batch_size(curve(falling, [], room=20), largest=256, budget=1e9) == 16
    assert choose_batch_size(curve(falling, []), largest=32, budget=1e9) == 32
    assert choose_batch_size(curve(falling, []), largest=1, budget=1e9) == 1


def test_a_slow_teacher_is_probed_briefly() -> None:
    asked: list[int] = []
    assert choose_batch_size(curve({1: 1.0}, asked), largest=64, budget=3) == 1
    assert asked == [1]


def test_other_errors_and_a_single_view_that_does_not_fit_go_up() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        choose_batch_size(curve({1: 1.0}, [], room=0), largest=64, budget=3)

    def broken(size: int) -> float:
        raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        choose_batch_size(broken, largest=64, budget=3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_allocators_own_error_counts() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_estimates_are_of_the_right_size() -> None:
    # MAE-B: 196 tokens of 2048 floats are 1.6 MB, of which two are live, beside the rest of the block.
    assert 5e6 < sequence_bytes(TeacherConfig(), 19) < 20e6
    assert 1e6 < available_memory() < 1e15
