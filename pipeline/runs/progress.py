"""How far a run is: totals, rates, and the lines a user sees while it goes on."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from patchsieve.pipeline.runs.log import LogFormat, log_event
from patchsieve.pipeline.shown import clock, say, spoke
from patchsieve.pipeline.units import duration

PLAIN_EVERY_S = 5.0
RATE_WINDOW_S = 30.0
SHOWN = 2
"""Devices that are named while a run goes on; its summary names all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts at one moment. `waited_share`: of the teachers' time, the share without a batch to score.

    `worker`: what works, a teacher on views or a ranker on images; `dropped`: images left out on purpose;
    `taken_out`: names of devices that failed again and again; `waits_for`: whose work a run without any actor of its
    own waits for.
    """

    shards: int
    done: int
    failed: int
    actors: int
    starting: int
    images: int
    views: int
    faults: int
    waited_share: float
    bytes_total: int
    bytes_done: int
    worker: str = "teacher"
    dropped: int = 0
    taken_out: tuple[str, ...] = ()
    waits_for: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Speed over the last half minute; `eta_s` None while unknown."""

    images_per_s: float
    views_per_s: float
    eta_s: float | None


class RateMeter:
    """Rates from the totals of a sliding window; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window: deque[tuple[float, Totals]] = deque()

    def update(self, totals: Totals) -> Rates:
        """Add the totals of now."""
        now = self._clock()
        self._window.append((now, totals))
        while len(self._window) > 2 and now - self._window[0][0] > RATE_WINDOW_S:
            self._window.popleft()
        then, old = self._window[0]
        passed = now - then
        if passed <= 0:
            return Rates(images_per_s=0.0, views_per_s=0.0, eta_s=None)
        bytes_per_s = (totals.bytes_done - old.bytes_done) / passed
        remaining = totals.bytes_total - totals.bytes_done
        return Rates(
            images_per_s=(totals.images - old.images) / passed,
            views_per_s=(totals.views - old.views) / passed,
            eta_s=remaining / bytes_per_s if bytes_per_s > 0 else None,
        )


def cells(totals: Totals, rates: Rates) -> dict[str, str]:
    """What is shown, by name."""
    shown = {"shards": f"{totals.done}/{totals.shards}"}
    if totals.failed:
        shown["failed"] = str(totals.failed)
    shown |= {
        "images": f"{totals.images:,}",
        **({"dropped": f"{totals.dropped:,}"} if totals.dropped else {}),
        "images/s": f"{rates.images_per_s:.1f}",
        **({"views/s": f"{rates.views_per_s:.1f}"} if totals.worker == "teacher" else {}),
        "ETA": duration(rates.eta_s) if rates.eta_s is not None else "?",
        "errors": str(totals.faults),
        f"{totals.worker} waited": f"{totals.waited_share:.0%}",
        "actors": f"{totals.actors}" + (f" (+{totals.starting} starting)" if totals.starting else ""),
    }
    if totals.taken_out:
        shown["taken out"] = ", ".join(totals.taken_out[:SHOWN]) + (
            ", ..." if totals.taken_out[SHOWN:] else ""
        )
    if totals.waits_for:
        shown["waits for"] = totals.waits_for
    return shown


class Display(Protocol):
    """Shows totals while a run goes on; a context manager."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, totals: Totals) -> None:
        """Called a few times a second."""


class PlainDisplay:
    """One line every few seconds: for logs, pipes and `ray job logs`."""

    def __init__(self) -> None:
        self._meter = RateMeter()
        self._printed = time.monotonic() - PLAIN_EVERY_S + 1

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def update(self, totals: Totals) -> None:
        """Print a line when it is time."""
        rates = self._meter.update(totals)
        if time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            self._print(totals, rates)

    def _print(self, totals: Totals, rates: Rates) -> None:
        say("  ".join([clock(), *(f"{name} {value}" for name, value in cells(totals, rates).items())]))


class JsonDisplay(PlainDisplay):
    """The same as an event of the log: numbers, with their plain names."""

    def _print(self, totals: Totals, rates: Rates) -> None:
        log_event("progress", {**dataclasses.asdict(totals), **dataclasses.asdict(rates)})
        spoke()


class TerminalDisplay:
    """A small table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._meter = RateMeter()
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> TerminalDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, totals: Totals) -> None:
        shown = cells(totals, self._meter.update(totals))
        table = Table(*shown, box=None, pad_edge=False)
        table.add_row(*shown.values())
        self._live.update(table)
        spoke()


def make_display(log_format: LogFormat = "text") -> Display:
    """Lines of JSON if asked for; else a table in place on a terminal, plain lines elsewhere."""
    if log_format == "json":
        return JsonDisplay()
    console = Console()
    return TerminalDisplay(console) if console.is_terminal and sys.stdout.isatty() else PlainDisplay()
