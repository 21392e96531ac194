"""What keeps the marks of tests true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.checkout import ROOT

# What is left on the disk when Ray starts, here or in a process with a folder of its own.
CODE = """
import os, pathlib, pytest

def start(name):
    pathlib.Path(os.environ["RAY_TMPDIR"], name, "session_1").mkdir(parents=True)

def test_here():
    start("ray")

def test_in_a_process():
    start("1/ray")

@pytest.mark.ray
def test_marked():
    start("2/ray")
"""


def test_a_test_that_starts_ray_must_say_so(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text(CODE)
    program = (sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-n", "0")
    done = subprocess.run(
        [*program, "-p", "tests.conftest", str(file)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "3 passed, 2 errors" in done.stdout, done.stdout
    assert re.search(r"slowest files of 1, \d+s in all -*=*\n[\d.]+s 100% ", done.stdout)
    assert done.stdout.count("ERROR at teardown of test_") == 2
    assert "AssertionError: starts Ray: mark it ray" in done.stdout
