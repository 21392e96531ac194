"""Where names stand beside a plot."""

from __future__ import annotations

import pytest

from patchsieve.ranker.prove.plot import spread


def test_names_lie_apart_and_inside() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert spread([0.9, 0.95, 1.0], 0.2) == pytest.approx([0.6, 0.8, 1.0])
    assert spread([], 0.1) == []
