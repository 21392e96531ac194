"""What a training shows while it runs and at its end, read from the files that its workers write."""

from __future__ import annotations

import contextlib
import csv
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import PatchsieveError
from patchsieve.pipeline.shown import clock, say
from patchsieve.ranker.model.checkpoint import RANKER_FILE
from patchsieve.ranker.train.curves import CSV_FILE
from patchsieve.ranker.train.loop import LAST_FOLDER
from patchsieve.ranker.train.steps import STEP_FILE

_POLL_S = 5.0
_JOIN_S = 2.0


def read_curve(out: str) -> list[dict[str, str]]:
    """The measurements so far, as texts by column; empty before the first."""
    try:
        text = storage.read_bytes(storage.join(out, CSV_FILE)).decode()
    except FileNotFoundError:
        return []
    return list(csv.DictReader(io.StringIO(text)))


def point_line(point: dict[str, str]) -> str:
    """One measurement as the console shows it."""
    agreement = float(point["agreement"] or "nan")
    return (
        f"{clock()}  step {int(point['step']):,}  views per image {float(point['views_per_image']):.4g}  loss "
        f"{float(point['loss']):.4f}  agreement {agreement:.3f} on {point['validation']}  waited for data "
        f"{float(point['waited']):.1%}"
    )


def numbers_of(point: dict[str, str]) -> dict[str, object]:
    """One measurement for the log: texts that are numbers as such, empty ones as None."""
    return {name: _number(text) if text else None for name, text in point.items()}


def _number(text: str) -> float | str:
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def print_point(point: dict[str, str]) -> None:
    """Show a measurement on the console."""
    say(point_line(point))


@contextlib.contextmanager
def follow(
    out: str,
    tell: Callable[[dict[str, str]], None],
    tell_step: Callable[[Mapping[str, Any]], None] = lambda about: None,
) -> Iterator[None]:
    """Tell of measurements, and of steps between them, as they are written, on a thread; not of those already there."""
    stop = threading.Event()
    seen = {point["step"] for point in read_curve(out)}
    step_url = storage.join(out, STEP_FILE)
    storage.remove(step_url)
    last_step = 0

    def show() -> None:
        with contextlib.suppress(
            PatchsieveError
        ):  # a store that is away for a while: they come with the next look
            for point in read_curve(out):
                if point["step"] not in seen:
                    seen.add(point["step"])
                    tell(point)
            with contextlib.suppress(FileNotFoundError):
                nonlocal last_step
                about = storage.read_object(step_url)
                if about["step"] > last_step:
                    last_step = about["step"]
                    tell_step(about)

    def watch() -> None:
        while not stop.wait(_POLL_S):
            show()

    thread = threading.Thread(target=watch, name="training progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_JOIN_S)
        show()
        with contextlib.suppress(PatchsieveError):
            storage.remove(step_url)


def finished(out: str, steps: int) -> bool:
    """Whether a training of so many steps is over: its last ranker is there, and the curve that is written after it."""
    curve = read_curve(out)
    if not curve or int(curve[-1]["step"]) != steps:
        return False
    try:
        return bool(_about(storage.join(out, LAST_FOLDER))["step"] == steps)
    except FileNotFoundError:
        return False


def outcome(out: str, *, shown: str) -> list[str]:
    """What a finished training says: the best ranker, which OUT holds, and the last."""
    best, last = (_about(folder) for folder in (out, storage.join(out, LAST_FOLDER)))
    return [
        f"complete: {last['steps']:,} steps; agreement is Spearman's correlation with the teacher on "
        f"{best['validation']} of {best['held_out']:,} held-out "
        + ("images" if best["validation"] == "whole images" else "views"),
        f"best      {_agreement(best)} at step {best['step']:,}: {shown}",
        f"last      {_agreement(last)} at step {last['step']:,}: {storage.join(shown, LAST_FOLDER)}",
    ]


def _about(folder: str) -> dict[str, Any]:
    url = storage.join(folder, RANKER_FILE)
    with storage.parsing(url):
        extra: dict[str, Any] = storage.read_object(url)["extra"]
        return extra


def _agreement(about: dict[str, Any]) -> str:
    return "undefined" if about["agreement"] is None else f"{about['agreement']:.3f}"
