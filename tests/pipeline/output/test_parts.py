"""Runs of parts side by side on one output folder: killed again and again, they leave what one run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.part import Part, parse_part, part_of_run
from patchsieve.pipeline.runs.status import read_status, status_lines
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.checkout import ROOT
from tests.pipeline.output.killed_parts import ROWS, acquired, commit, shards
from tests.pipeline.output.world import World


def test_every_shard_is_in_one_part_and_stays_there() -> None:
    parts = [Part(index, 8) for index in range(1, 9)]
    owners = {shard.id: [part for part in parts if part.takes(shard.id)] for shard in shards(1000)}
    assert all(len(found) == 1 for found in owners.values())
    sizes = [sum(part.takes(shard.id) for shard in shards(1000)) for part in parts]
    assert min(sizes) > 80
    assert Part(1, 1).takes("anything")


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "3", "3/", "a/b", "-1/8", "1/0", "1/10001", "3/8/9", "\u0663/8"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="I/N with I from 1 to N"):
        parse_part(text)


def test_a_run_id_tells_its_part() -> None:
    assert part_of_run(new_run_id(Part(3, 8))) == Part(3, 8) == parse_part("3/8")
    assert part_of_run(new_run_id()) is None


def test_parts_work_side_by_side_and_a_wrong_number_is_refused(tmp_path: Path) -> None:
    first = acquired(tmp_path, Part(1, 2))
    second = acquired(tmp_path, Part(2, 2))
    with pytest.raises(UserError, match=r"divided into 2 parts, and --part 1/3 is one of 3 .*2 -> 3"):
        acquired(tmp_path, Part(1, 3))
    with pytest.raises(UserError, match=r"divided into 2 parts: ask for --part I/2"):
        acquired(tmp_path, None)
    assert not (tmp_path / "owner.json").exists()
    first.release()
    second.release()
    assert not list(tmp_path.rglob("owner.json"))


@pytest.mark.parametrize("count", [0, 10_001, 10**9, 1.5, True])
def test_no_part_is_looked_for_in_a_number_that_is_none(tmp_path: Path, count: object) -> None:
    (tmp_path / "parts.json").write_text(json.dumps({"parts": count}))
    with pytest.raises(UserError, match=r"parts.json is damaged.* is no number of parts"):
        read_status(str(tmp_path))


def test_a_part_has_one_owner(tmp_path: Path) -> None:
    world = World()
    first = acquired(tmp_path, Part(1, 2), world.machine("a", 5))
    world.while_waiting = first._owner.beat
    with pytest.raises(UserError, match=r"parts/1-of-2 is in use by run .* on a"):
        acquired(tmp_path, Part(1, 2), world.machine("b", 6))


def test_a_run_over_the_whole_and_a_part_keep_each_other_out(tmp_path: Path) -> None:
    world = World()
    whole = acquired(tmp_path, None, world.machine("a", 5))
    world.while_waiting = whole._owner.beat
    with pytest.raises(UserError, match="is in use by run"):
        acquired(tmp_path, Part(1, 2), world.machine("b", 6))
    del world.processes["a", 5]
    acquired(tmp_path, Part(1, 2), world.machine("a", 7)).release()
    assert not (tmp_path / "owner.json").exists()


def test_a_part_removes_what_its_own_killed_run_left_and_nothing_of_others(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    names = {
        part: tmp_path / f"scores/.x.parquet.{new_run_id(part)}.0a.tmp" for part in map(parse_part, PARTS)
    }
    for path in names.values():
        path.touch()
    acquired(tmp_path, Part(3, 18)).release()
    assert {part.index for part, path in names.items() if part and path.exists()} == {13}


PARTS = ("3/18", "13/18")


def test_status_is_over_all_parts(tmp_path: Path) -> None:
    everything = shards(12)
    for part in (Part(1, 3), Part(2, 3)):
        output = acquired(tmp_path / "out", part)
        output.adopt_config(ROWS, other={})
        own = [shard for shard in everything if part.takes(shard.id)]
        for shard in own[1:]:
            commit(output, tmp_path, shard)
        output.write_run({"state": "stopped by SIGTERM" if part.index == 2 else "complete"}, shards=own)
        output.release()
    status = read_status(str(tmp_path / "out"))
    begun = sum(Part(1, 3).takes(shard.id) or Part(2, 3).takes(shard.id) for shard in everything)
    assert (status.done, status.missing, status.failed) == (begun - 2, 2, 0)
    assert status.parts == {"1/3": "complete", "2/3": "stopped by SIGTERM", "3/3": "not begun"}
    assert not status.complete
    lines = "\n".join(status_lines(status))
    assert "3/3 not begun" in lines
    assert "1/3" not in lines


def test_what_parts_read_is_kept_for_all(tmp_path: Path) -> None:
    everything = shards(6)
    for part in (Part(1, 2), Part(2, 2)):
        output = acquired(tmp_path / "out", part)
        own = [shard for shard in everything if part.takes(shard.id)]
        for shard in own:
            commit(output, tmp_path, shard)
        output.keep_records(own)
        output.release()
    # Nothing is read again that has size and tag of the kept: not even what is no table any more.
    for path in (tmp_path / "out/scores").iterdir():
        times, size = path.stat(), path.stat().st_size
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(OutputFolder(str(tmp_path / "out"), SCORES, run_id="later").all_records(2)) == 6


def test_eight_parts_killed_fifty_times_leave_what_one_run_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipeline.output.killed_parts", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 50
    one, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "scores").iterdir()}
        for name in ("one", "parts")
    )
    assert one == parts
    assert read_status(str(tmp_path / "parts")).complete
    left = {path.name for path in (tmp_path / "parts").rglob("*") if path.suffix in (".tmp", ".claim")}
    # A killed exclusive creation names no run.
    assert all(".create." in name for name in left)
    assert json.loads((tmp_path / "parts/parts.json").read_bytes())["parts"] == 8
