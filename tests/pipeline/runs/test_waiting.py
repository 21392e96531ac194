"""Where nothing is said for a while, a line says what is waited for."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable

import pytest

from patchsieve.pipeline.runs.log import run_events
from patchsieve.pipeline.runs.waiting import QUIET, doing, never_silent
from patchsieve.pipeline.shown import say


class Lines(io.StringIO):
    """Text that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.came.set()
        return written


@pytest.fixture(autouse=True)
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(QUIET, raising=False)


def heard(work: Callable[[Lines], None], **options: float) -> list[str]:
    lines = Lines()
    with never_silent(first_s=0.01, every_s=0.01, file=lines, **options):
        work(lines)
    return lines.getvalue().splitlines()


def test_it_says_what_is_waited_for_with_the_time() -> None:
    def work(lines: Lines) -> None:
        with doing("training"), doing("starting Ray"):
            assert lines.came.wait(60)

    assert re.fullmatch(r"\d\d:\d\d:\d\d  starting Ray \(after 0 s\)", heard(work)[0])


def test_before_anything_is_named_libraries_are_loading() -> None:
    assert "loading libraries" in heard(lambda lines: lines.came.wait(60) and None)[0]


def test_a_command_that_speaks_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    with never_silent(first_s=30, every_s=30, file=lines):
        say("something")
    assert lines.getvalue() == ""


def test_nothing_is_said_while_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(lines: Lines) -> None:
        assert not lines.came.wait(0.2)

    with doing(""):
        assert heard(idle) == []
    monkeypatch.setenv(QUIET, "1")
    assert heard(lambda lines: None) == []


def test_in_a_json_log_it_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    monkeypatch.setattr("sys.stdout", lines)
    with (
        run_events("json", job="score", run_id="run"),
        doing("Ray"),
        never_silent(first_s=0.01, every_s=0.01),
    ):
        assert lines.came.wait(60)
    first = json.loads(lines.getvalue().splitlines()[0])
    assert (first["event"], first["for"]) == ("waiting", "Ray")
