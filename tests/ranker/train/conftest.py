"""Trainings whose plots nobody looks at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from patchsieve.ranker.train import curves


@pytest.fixture
def plotted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many measurements each plot would be; none is drawn, which takes half a second."""
    plotted: list[int] = []

    def draw(records: Sequence[curves.CurvePoint]) -> bytes:
        plotted.append(len(records))
        return b""

    monkeypatch.setattr(curves, "draw_curves", draw)
    return plotted
