"""`config.json`: what it refuses, said in the words of the command line, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.settings import adopt_config, stored_config


def test_more_views_come_with_the_way_to_add_them(tmp_path: Path) -> None:
    stored = {"first_view": 0, "views": 2, "seed": 0}
    adopt_config(str(tmp_path), stored, other={}, run_id="run-1", records="scores")
    with pytest.raises(UserError, match=r"--views: 2 -> 4.*give --views 2:4 with another --out"):
        adopt_config(str(tmp_path), {**stored, "views": 4}, other={}, run_id="run-2", records="scores")
    with pytest.raises(UserError, match=r"seed: 0 -> 1. Ask for the same, or write to another folder$"):
        adopt_config(str(tmp_path), {**stored, "seed": 1}, other={}, run_id="run-2", records="scores")


def test_the_folder_of_a_ranker_is_no_run_over_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "patchsieve ranker"}')
    with pytest.raises(UserError, match="holds a ranker, not a run over shards"):
        stored_config(str(tmp_path))
