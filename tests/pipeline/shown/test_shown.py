"""Names that others chose, on a terminal and in a log: text, whatever they hold."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from patchsieve.jobs.command_line import run_job
from patchsieve.jobs.status import main as status_main
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.runs.status import StatusConfig
from patchsieve.pipeline.shown import one_line
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.tables import make_shard

FORGED = "\x1b[2J\x1b[1;32m\ncomplete: 24 of 24 shards done\r\x9b\u202egpj.exe\u2028\udcff"
SHOWN = r"\x1b[2J\x1b[1;32m\x0acomplete: 24 of 24 shards done\x0d\x9b\u202egpj.exe\u2028\udcff"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert one_line(FORGED) == SHOWN
    plain = "größe 写真 'a\\b' 100 %"
    assert one_line(plain) == plain


def test_a_status_shows_names_of_shards_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = OutputFolder(str(tmp_path), SCORES, run_id="run-1")
    shard = make_shard(b"", f"/data/{FORGED[:-1]}.tar")
    output.write_run({"state": FORGED}, shards=[shard])
    output.record_failed(shard, 3, FORGED)
    with pytest.raises(SystemExit):
        status_main([str(tmp_path)])
    told = capsys.readouterr().out
    assert not any(line.startswith("complete") for line in told.splitlines())
    assert told.count(SHOWN[:-6]) == 3
    with pytest.raises(SystemExit):
        status_main([str(tmp_path), "--json"])
    assert list(json.loads(capsys.readouterr().out)["failures"].values()) == [FORGED]


def test_errors_and_warnings_of_a_command_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    # Where no handler is set up, as in every command.
    root = logging.getLogger()
    handlers, root.handlers[:] = root.handlers[:], []

    def fail(config: StatusConfig) -> int:
        logging.getLogger("patchsieve.test").warning("cannot read %s", FORGED)
        raise UserError(f"no shard {FORGED}")

    try:
        with pytest.raises(SystemExit):
            run_job("status", StatusConfig, fail, ["out"])
    finally:
        root.handlers[:] = handlers
    assert capfd.readouterr().err.split("\n") == [
        f"cannot read {SHOWN}",
        f"patchsieve status: no shard {SHOWN}",
        "",
    ]
