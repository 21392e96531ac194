"""Mistyped paths are told at once: a process that has loaded nothing yet says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from patchsieve.jobs.first_look import look_first
from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.report.config import ReportConfig
from tests.helpers.checkout import python_path

COMMANDS = {
    "score none.tar --out out": "patchsieve score: no such shard: {}/none.tar",
    "prune none.tar --out out --ranker tiny": "patchsieve prune: no such shard: {}/none.tar",
    "evaluate none.tar --ranker tiny --teacher tiny": "patchsieve evaluate: no such shard: {}/none.tar",
    "prove there.tar --test none.tar --label cls --out out": "patchsieve prove: no such shard: {}/none.tar",
    "train none --out out": "patchsieve train: no such file or folder: none",
    "report there.tar none --out page.html": "patchsieve report: no such file or folder: none",
    "sheet none --out sheet.png": "patchsieve sheet: no such file or folder: none",
    "verify none": "patchsieve verify: no such file or folder: none",
}
CODE = """
import importlib, sys
for command in sys.argv[1:]:
    name, *given = command.split()
    try:
        importlib.import_module(f"patchsieve.jobs.{name}").main(given)
    except SystemExit as end:
        print(end.code)
print({"ray", "torch", "pyarrow"} & set(sys.modules))
"""


def test_inputs_that_are_not_there_are_told_before_libraries_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "there.tar").touch()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *COMMANDS],
        cwd=tmp_path,
        env={"PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == [line.format(tmp_path) for line in COMMANDS.values()]
    assert done.stdout.splitlines() == ["2"] * len(COMMANDS) + ["set()"]


def test_the_home_folder_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tables").mkdir()
    look_first(ReportConfig(paths=("~/tables",), out="page.html"))
    with pytest.raises(UserError, match="no such file or folder: ~/table"):
        look_first(ReportConfig(paths=("~/table",), out="page.html"))


def test_rankers_that_are_no_folders_need_not_be_there() -> None:
    look_first(ReportConfig(paths=("tiny", "baseline:edge"), out="page.html"))
    with pytest.raises(UserError, match="no such file or folder: tinny"):
        look_first(ReportConfig(paths=("tinny",), out="page.html"))
