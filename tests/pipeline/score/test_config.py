"""Settings of a score run that cannot be."""

from __future__ import annotations

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.score.config import parse_views


def test_views_are_a_count_or_a_range() -> None:
    assert [parse_views(text) for text in ("4", "4:8", "0:1")] == [(0, 4), (4, 4), (0, 1)]


@pytest.mark.parametrize("text", ["0", "-1", "4:4", "8:4", "-2:4", "four", ""])
def test_other_views_are_refused_with_what_they_may_be(text: str) -> None:
    with pytest.raises(UserError, match=f"--views is {text!r}, must be a count"):
        parse_views(text)
