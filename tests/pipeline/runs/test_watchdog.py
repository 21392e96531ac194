"""A process that ends itself where nothing moves, and not while something does."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

BEGIN = """
import sys, threading, time
from patchsieve.pipeline.runs.watchdog import Watchdog
watchdog = Watchdog(0.5, lambda reason: print(reason, flush=True))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process with a watchdog of half a second."""
    whole = BEGIN + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, timeout=60, check=False
    )


def test_one_that_hangs_says_where_and_ends() -> None:
    ended = run("""
        def a_step_without_end():
            with watchdog.over():
                threading.Event().wait()
        a_step_without_end()
    """)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == "no progress for 0.5 s\n"
    assert "a_step_without_end" in ended.stderr


def test_one_that_holds_the_interpreter_ends_too() -> None:
    # A regular expression of exponential time: nothing else of the process runs meanwhile.
    ended = run("""
        import re
        with watchdog.over():
            re.match("(a+)+$", "a" * 40 + "b")
    """)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_one_that_moves_or_has_nothing_in_hand_goes_on() -> None:
    ended = run("""
        with watchdog.over():
            for _ in range(8):
                time.sleep(0.1)
                watchdog.moved()
        time.sleep(0.8)
        print("done")
    """)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
