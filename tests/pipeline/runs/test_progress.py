"""Rates, durations and sizes as people read them, and the two displays."""

from __future__ import annotations

import dataclasses
import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from patchsieve.pipeline.runs import progress
from patchsieve.pipeline.runs.progress import (
    PLAIN_EVERY_S,
    RATE_WINDOW_S,
    PlainDisplay,
    RateMeter,
    Rates,
    TerminalDisplay,
    Totals,
    cells,
    make_display,
)
from patchsieve.pipeline.units import byte_size, duration

START = Totals(
    shards=4,
    done=0,
    failed=0,
    actors=1,
    starting=0,
    images=0,
    views=0,
    faults=0,
    waited_share=0.0,
    bytes_total=1000,
    bytes_done=0,
)


def totals(**changes: Any) -> Totals:
    return dataclasses.replace(START, **changes)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("names", "told"),
    [((), None), (("GPU 0", "GPU 1"), "GPU 0, GPU 1"), (("GPU 0", "GPU 1", "GPU 2"), "GPU 0, GPU 1, ...")],
)
def test_devices_that_are_taken_out_are_named(names: tuple[str, ...], told: str | None) -> None:
    rates = Rates(images_per_s=0.0, views_per_s=0.0, eta_s=None)
    assert cells(totals(taken_out=names), rates).get("taken out") == told


def test_rates_of_the_last_half_minute() -> None:
    clock = Clock()
    meter = RateMeter(clock)
    assert meter.update(START) == Rates(images_per_s=0.0, views_per_s=0.0, eta_s=None)
    clock.now += 10
    assert meter.update(totals(images=20, views=80, bytes_done=200)) == Rates(
        images_per_s=2.0, views_per_s=8.0, eta_s=40.0
    )
    clock.now += 10
    # Nothing moves: the rate falls, and the rest takes longer.
    assert meter.update(totals(images=20, views=80, bytes_done=200)) == Rates(
        images_per_s=1.0, views_per_s=4.0, eta_s=80.0
    )
    for _ in range(4):
        clock.now += RATE_WINDOW_S / 2
        rates = meter.update(totals(images=20, views=80, bytes_done=200))
    assert rates == Rates(images_per_s=0.0, views_per_s=0.0, eta_s=None), "what was long ago is forgotten"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (12_345, "12.3 kB"),
        (5.5e9, "5.5 GB"),
        (2e15, "2 PB"),
    ],
)
def test_byte_sizes(count: float, text: str) -> None:
    assert byte_size(count) == text


def test_what_is_shown() -> None:
    rates = Rates(images_per_s=12.34, views_per_s=49.4, eta_s=90)
    shown = cells(totals(done=2, images=1500, faults=3, waited_share=0.126, starting=2), rates)
    assert shown == {
        "shards": "2/4",
        "images": "1,500",
        "images/s": "12.3",
        "views/s": "49.4",
        "ETA": "1 min 30 s",
        "errors": "3",
        "teacher waited": "13%",
        "actors": "1 (+2 starting)",
    }
    assert cells(totals(failed=1), dataclasses.replace(rates, eta_s=None))["failed"] == "1"
    assert cells(START, dataclasses.replace(rates, eta_s=None))["ETA"] == "?"


def test_one_plain_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    with PlainDisplay() as display:
        for images in range(100):
            display.update(totals(images=images))
            clock.now += PLAIN_EVERY_S / 10
    lines = capsys.readouterr().out.splitlines()
    assert 9 <= len(lines) <= 11
    assert all(re.match(r"\d\d:\d\d:\d\d  shards 0/4  images ", line) for line in lines)
    assert all(line.isprintable() for line in lines), "no control characters in a log"


def test_a_table_in_place_on_a_terminal() -> None:
    screen = io.StringIO()
    with TerminalDisplay(Console(file=screen, force_terminal=True, width=120)) as display:
        display.update(totals(done=1, images=7))
        display.update(totals(done=3, images=1234))
    assert "1,234" in screen.getvalue()
    assert "teacher waited" in screen.getvalue()


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(make_display(), PlainDisplay)
