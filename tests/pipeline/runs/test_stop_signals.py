"""SIGINT and SIGTERM end a block within two seconds, also where the main thread takes no notice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.checkout import ROOT

# A process that says when it is ready, gets a signal, and does `then` once it has caught KeyboardInterrupt.
PROGRAM = """
import os, signal, sys, threading
from patchsieve.pipeline.runs.stop import stop_on_signals

def tidy_up(number):
    print("tidied up by a thread", number.name, flush=True)

with stop_on_signals(tidy_up, then="; again") as stop:
    try:
        {prepare}
        print("ready", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        {then}
print("left", flush=True)
os._exit(128 + stop.signal)
"""
FOREVER = "threading.Event().wait()"


def stopped(number: signal.Signals, *, prepare: str = "pass", then: str) -> tuple[int, list[str], float]:
    """Exit code, lines after `ready`, and seconds from the signal to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(prepare=prepare, then=then)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.splitlines(), time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_main_thread_tidies_up(number: signal.Signals) -> None:
    code, lines, seconds = stopped(number, then="print('accepted', stop.accept().name)")
    assert (code, lines) == (128 + number, [f"accepted {number.name}", "left"])
    assert seconds < 1.0


def test_a_second_signal_does_not_interrupt_tidying_up() -> None:
    then = "stop.accept(); signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGTERM)"
    code, lines, _ = stopped(signal.SIGTERM, then=then)
    assert (code, lines) == (143, ["left"])


def test_where_the_exception_was_lost_a_thread_tidies_up() -> None:
    code, lines, seconds = stopped(signal.SIGTERM, then=FOREVER)
    assert (code, lines) == (143, ["tidied up by a thread SIGTERM", "stopped by SIGTERM, tidied up; again"])
    assert seconds < 2.3


def test_a_signal_that_another_handler_took_counts() -> None:
    # As a library may put its own in place.
    prepare = "signal.signal(signal.SIGTERM, lambda *_: None)"
    code, lines, seconds = stopped(signal.SIGTERM, prepare=prepare, then="pass")
    assert (code, lines) == (143, ["tidied up by a thread SIGTERM", "stopped by SIGTERM, tidied up; again"])
    assert seconds < 2.3


def test_tidying_up_that_hangs_is_ended() -> None:
    code, lines, seconds = stopped(signal.SIGINT, then=f"stop.accept(); {FOREVER}")
    assert (code, lines) == (130, ["stopped by SIGINT, the next run tidies up; again"])
    assert seconds < 2.3


def test_the_main_thread_is_neither_waited_for_nor_interrupted_where_it_says_so() -> None:
    prepare = "block = stop.at_once(); block.__enter__()"
    then = f"print('interrupted', flush=True); {FOREVER}"
    code, lines, seconds = stopped(signal.SIGTERM, prepare=prepare, then=then)
    assert (code, lines) == (143, ["tidied up by a thread SIGTERM", "stopped by SIGTERM, tidied up; again"])
    assert seconds < 1.0


def test_one_of_two_threads_tidies_up() -> None:
    # The thread has begun when the main one accepts, and goes on once that one has done so or waits.
    prepare = """
        late, accepting = threading.Event(), threading.Event()
        main = threading.main_thread().ident

        def tidy_up(number):
            late.set()
            accepting.wait()
            while sys._current_frames()[main].f_code.co_name != "wait":
                pass
            print("tidied up by a thread", flush=True)

        stop._tidy_up = tidy_up
"""
    then = f"late.wait(); accepting.set(); stop.accept(); print('by the main one', flush=True); {FOREVER}"
    code, lines, _ = stopped(signal.SIGTERM, prepare=prepare.strip(), then=then)
    assert (code, lines) == (143, ["tidied up by a thread", "stopped by SIGTERM, tidied up; again"])
