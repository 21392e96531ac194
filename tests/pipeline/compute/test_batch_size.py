"""What fits into memory, and which batch size pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from patchsieve.pipeline.compute.batch_size import (
    FIRST_PATIENCE,
    LARGEST_TENSOR,
    PassSize,
    available_memory,
    choose_batch_size,
    is_out_of_memory,
    largest_good_batch,
)
from patchsieve.pipeline.scoring.cost import sequence_bytes, sequence_values
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


def test_what_did_not_fit_is_tried_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    size = PassSize(64, clock=lambda: now)
    assert not size.grow()
    size.halve()
    size.halve()
    assert size.now == 16
    assert not size.grow()
    now += FIRST_PATIENCE
    assert size.grow()
    assert size.now == 32
    size.halve()
    now += FIRST_PATIENCE
    assert not size.grow(), "the second wait is longer"
    now += FIRST_PATIENCE
    assert size.grow()
    now += 4 * FIRST_PATIENCE
    assert size.grow()
    assert (size.now, size.grow()) == (64, False)
    told = [record.getMessage() for record in caplog.records]
    assert told[1] == "out of memory: 16 sequences at once from here on, 64 are usual"
    assert told[2] == "32 sequences at once are tried again"


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({1: 30.0, 64: 958.0, 128: 961.0, 256: 972.0}, 256),  # MAE-B in fp16 on an H100
        ({1: 30.0, 64: 1000.0, 128: 980.0, 256: 900.0}, 128),
        ({1: 30.0, 64: 900.0}, 64),
    ],
)
def test_the_largest_batch_that_is_about_as_fast(rates: dict[int, float], expected: int) -> None:
    def seconds_per_view(size: int) -> float:
        if size not in rates:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 / rates[size]

    assert largest_good_batch(seconds_per_view, (1, 64, 128, 256)) == expected
    with pytest.raises(torch.OutOfMemoryError):
        largest_good_batch(seconds_per_view, (512,))


def test_tensors_stay_within_what_kernels_count() -> None:
    """MAE-H at 256 views would make tensors of 3.0e9 values."""
    huge = TeacherConfig(patch_size=14, width=1280, depth=32, heads=16)
    assert LARGEST_TENSOR // sequence_values(huge) // 25 in range(64, 256)
    assert LARGEST_TENSOR // sequence_values(TeacherConfig()) // 19 >= 128
