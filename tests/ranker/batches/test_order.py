"""Shares, windows and orders of rows: pure arithmetic."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from patchsieve.ranker.batches.order import ReadingOrder, Window, held_out

ROWS = [7, 0, 3, 12, 1, 5, 9, 4, 0, 8, 2, 6]


# Taken down once: what a position in a checkpoint means.
GOLDEN = [(1, 0), (0, 0), (2, 3), (0, 1), (2, 1), (1, 1), (0, 2), (2, 0), (2, 2)]
GOLDEN_HELD_OUT = [1, 2, 7, 11]


def an_order(rank: int = 0, ranks: int = 1, *, window_bytes: int = 15, **changes: object) -> ReadingOrder:
    rows = np.array(changes.pop("rows", ROWS), dtype=np.int64)
    return ReadingOrder(
        rows=rows,
        sizes=rows,
        rank=rank,
        ranks=ranks,
        window_bytes=window_bytes,
        **{"seed": 5, "batch_size": 3, **changes},
    )


def rows_of(order: ReadingOrder, epoch: int, first_step: int = 0) -> list[tuple[int, int]]:
    """(slice, row of it) of all batches from `first_step` on, in order."""
    given: list[tuple[int, int]] = []
    for window in order.windows(epoch, first_step):
        inside = [
            (piece.slice, int(row))
            for piece in window.pieces
            for row in order.slice_order(epoch, piece.slice)[piece.start : piece.stop]
        ]
        begin = max(0, first_step * order.batch_size - window.start)
        end = order.batches * order.batch_size - window.start
        given += [inside[place] for place in order.window_order(epoch, window)[begin:end]]
    return given


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("window_bytes", [1, 15, 1000])
def test_ranks_have_equally_many_rows_and_none_in_common(ranks: int, window_bytes: int) -> None:
    orders = [an_order(rank, ranks, window_bytes=window_bytes) for rank in range(ranks)]
    assert {order.batches for order in orders} == {sum(ROWS) // ranks // 3}
    for epoch in range(3):
        given = [rows_of(order, epoch) for order in orders]
        assert [len(rows) for rows in given] == [orders[0].batches * 3] * ranks
        counts = Counter(row for rows in given for row in rows)
        assert set(counts.values()) == {1}
        assert counts.keys() <= {(number, row) for number, count in enumerate(ROWS) for row in range(count)}
        assert sum(ROWS) - len(counts) < ranks * 3


def test_an_epoch_goes_on_from_any_step_with_the_windows_that_are_needed() -> None:
    for rank in range(2):
        order = an_order(rank, 2)
        everything, windows = rows_of(order, 4), order.windows(4)
        assert len(windows) > 2
        assert [window.start for window in windows] == list(
            np.cumsum([0, *[window.rows for window in windows[:-1]]])
        )
        for step in range(order.batches + 1):
            assert rows_of(order, 4, step) == everything[3 * step :]
            following = order.windows(4, step)
            assert following == windows[len(windows) - len(following) :]
            assert not following or following[0].start + following[0].rows > 3 * step


def test_windows_keep_to_their_size() -> None:
    def size(window: Window) -> int:
        return sum(ROWS[piece.slice] for piece in window.pieces)

    for window_bytes in (1, 10, 15, 40):
        windows = an_order(window_bytes=window_bytes).windows(0)
        assert all(size(window) <= window_bytes or len(window.pieces) == 1 for window in windows)
        # Nor are they smaller than they need be.
        for window, following in itertools.pairwise(windows):
            assert size(window) + ROWS[following.pieces[0].slice] > window_bytes


def test_seed_and_epoch_decide_the_order() -> None:
    first = rows_of(an_order(), 0)
    assert first == rows_of(an_order(), 0)
    assert first != rows_of(an_order(), 1)
    assert first != rows_of(an_order(seed=6), 0)
    window = an_order().windows(0)[0]
    mirrored = [an_order().mirrored(epoch, window) for epoch in (0, 0, 1)]
    assert np.array_equal(mirrored[0], mirrored[1])
    assert not np.array_equal(mirrored[0], mirrored[2])


def test_no_row_of_a_single_group_is_always_left_out() -> None:
    seen = {row for epoch in range(40) for row in rows_of(an_order(0, 2, rows=[7]), epoch)}
    assert seen == {(0, row) for row in range(7)}


def test_golden_order() -> None:
    assert rows_of(an_order(rows=[3, 2, 4]), 1) == GOLDEN
    assert [i for i in range(12) if held_out(f"image-{i}", 0.3, 0)] == GOLDEN_HELD_OUT


def test_held_out_images_are_a_share_of_keys() -> None:
    keys = [f"photo/{i}" for i in range(4000)]
    small, large = ({key for key in keys if held_out(key, share, 0)} for share in (0.1, 0.25))
    assert small < large
    assert len(small) == pytest.approx(400, abs=80)
    assert len(large) == pytest.approx(1000, abs=120)
    assert small != {key for key in keys if held_out(key, 0.1, 1)}
    assert not any(held_out(key, 0.0, 0) for key in keys)
    assert held_out("\udcff.jpg", 1.0, 0)


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"window_bytes": 0}, {"rank": 2, "ranks": 2}])
def test_impossible_arguments(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be positive|no rank"):
        an_order(**changes)
