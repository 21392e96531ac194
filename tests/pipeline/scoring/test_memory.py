"""Scores when memory is small: passes are cut and cut again, and only rounding changes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.row_config import Removal
from patchsieve.pipeline.scoring import scorer as scoring
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from tests.pipeline.scoring.cases import RATIO, REMOVALS, SMALL, make_teacher, make_views


@pytest.mark.parametrize("removal", REMOVALS)
def test_batch_size_and_chunks_change_rounding_only(
    removal: Removal, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_teacher()
    _, pixels, visible = make_views(SMALL, 5, 7)
    expected = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=1).score(pixels, visible)
    for batch_size in (2, 4, 8):
        scores = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=batch_size).score(
            pixels, visible
        )
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)
    for removals_per_pass in (1, 3, 10):
        # The memory of a small machine.
        monkeypatch.setattr(scoring, "sequence_bytes", lambda *_: 1)
        monkeypatch.setattr(scoring, "available_memory", lambda n=removals_per_pass: n)
        scores = Scorer(model, mask_ratio=RATIO, removal=removal, batch_size=4).score(pixels, visible)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=0)


class Cramped(MaskedAutoencoder):
    """A teacher on a device whose memory holds only so many sequences."""

    room = 1_000_000
    sizes: list[int]
    message = "CUDA out of memory"
    error: type[Exception] = torch.OutOfMemoryError

    def finish_decoding(self, x: Tensor, blocks: Iterable[torch.nn.Module], read: int) -> Tensor:
        if len(x) > Cramped.room:
            raise Cramped.error(Cramped.message)
        Cramped.sizes.append(len(x))
        return super().finish_decoding(x, blocks, read)


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> type[Cramped]:
    monkeypatch.setattr(Cramped, "sizes", [], raising=False)
    monkeypatch.setattr(Cramped, "room", Cramped.room)
    monkeypatch.setattr(Cramped, "message", Cramped.message)
    monkeypatch.setattr(Cramped, "error", Cramped.error)
    return Cramped


@pytest.mark.parametrize("room", [1, 2, 6, 7, 20])
@pytest.mark.parametrize("removal", REMOVALS)
def test_out_of_memory_halves_the_pass(cramped: type[Cramped], removal: Removal, room: int) -> None:
    _, pixels, visible = make_views(SMALL, 5, 7)
    expected = Scorer(make_teacher(), mask_ratio=RATIO, removal=removal, batch_size=4).score(pixels, visible)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, removal=removal, batch_size=4)
    cramped.room = room
    torch.testing.assert_close(scorer.score(pixels, visible), expected, rtol=1e-5, atol=0)
    assert max(cramped.sizes) <= room
    assert scorer.batch_size == 4


def test_out_of_memory_messages_of_processors_count(cramped: type[Cramped]) -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, batch_size=2)
    cramped.room, cramped.error = 7, RuntimeError
    cramped.message = (
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert scorer.score(pixels, visible).isfinite().all()
    cramped.room, cramped.message = 3, "shape mismatch"
    with pytest.raises(RuntimeError, match="shape mismatch"):
        scorer.score(pixels, visible)


def test_no_room_for_one_removal_is_an_infrastructure_error(cramped: type[Cramped]) -> None:
    _, pixels, visible = make_views(SMALL, 2, 7)
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO, batch_size=2)
    cramped.room = 0
    with pytest.raises(InfrastructureError, match="not even one removal"):
        scorer.score(pixels, visible)


def test_measured_batch_size_stays_within_memory(cramped: type[Cramped]) -> None:
    cramped.room = 21
    scorer = Scorer(make_teacher(kind=cramped), mask_ratio=RATIO)
    assert scorer.batch_size in {1, 2}
    cramped.room = 3
    assert Scorer(make_teacher(kind=cramped), mask_ratio=RATIO).batch_size == 1
