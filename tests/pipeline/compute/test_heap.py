"""Memory that a process keeps: what is freed is there again without the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchsieve.pipeline.compute.device import keep_freed_memory
from tests.pipeline.compute.heap_run import PAGES


def page_faults(how: str, *, others: int = 0) -> int:
    command = [sys.executable, "-m", "tests.pipeline.compute.heap_run", how, str(others)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_is_freed_is_kept_for_the_next_batch() -> None:
    assert page_faults("plain") > 3 * PAGES
    # As in a process of Ray's, whose threads have their heaps already.
    assert page_faults("keep", others=32) < PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
