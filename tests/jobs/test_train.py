"""Tables and settings that cannot be trained on: one clear line each, exit 2, nothing written, Ray never started."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.jobs.train import main
from tests.helpers.pixel_tables import SMALL_TEACHER, VISIBLE, write_pixel_table

OPTIONS = ["--model", "vit_tiny_patch16_224", "--depth", "1", "--batch-size", "4", "--held-out", "0.3"]
IMAGES = range(12)


def a_table(path: Path, **settings: object) -> str:
    return write_pixel_table(path, images=IMAGES, **settings)


def other_teacher(folder: Path) -> list[str]:
    other = dataclasses.replace(SMALL_TEACHER, digest="f" * 64)
    return [a_table(folder / "a.parquet"), a_table(folder / "b.parquet", teacher=other)]


def other_grid(folder: Path) -> list[str]:
    other = dataclasses.replace(SMALL_TEACHER, grid=8)
    return [a_table(folder / "a.parquet"), a_table(folder / "b.parquet", teacher=other)]


def same_shard_twice(folder: Path) -> list[str]:
    return [a_table(folder / "one" / "a.parquet"), a_table(folder / "two" / "a.parquet")]


def half_written(folder: Path) -> list[str]:
    path = Path(a_table(folder / "a.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    return [str(path)]


def damaged_within(folder: Path) -> list[str]:
    path = Path(a_table(folder / "a.parquet"))
    content = bytearray(path.read_bytes())
    group = pq.ParquetFile(path).metadata.row_group(1)
    columns = [group.column(number) for number in range(group.num_columns)]
    (score,) = [column for column in columns if column.path_in_schema.startswith("score")]
    # The last byte of its only page.
    content[score.data_page_offset + score.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(content)
    return [str(path)]


def foreign(folder: Path) -> list[str]:
    pq.write_table(pa.table({"caption": ["a", "b"]}), folder / "captions.parquet")
    return [str(folder / "captions.parquet")]


def empty(folder: Path) -> list[str]:
    return [write_pixel_table(folder / "a.parquet", images=range(0))]


def not_a_number(folder: Path) -> list[str]:
    score = np.full(VISIBLE, np.nan, dtype=np.float32)
    return [a_table(folder / "a.parquet", changed={5: {"score": score}})]


def no_pixels(folder: Path) -> list[str]:
    return [a_table(folder / "a.parquet", store="none")]


def no_table(folder: Path) -> list[str]:
    (folder / "nothing").mkdir(exist_ok=True)
    return [str(folder / "nothing")]


def sound(folder: Path) -> list[str]:
    return [a_table(folder / "a.parquet")]


@pytest.mark.parametrize(
    ("tables", "arguments", "message"),
    [
        (other_teacher, "", "differ in their teacher"),
        (other_grid, "", "differ in their grid"),
        (same_shard_twice, "", "hold the same views (0 to 1) of one shard content"),
        (half_written, "", "a.parquet"),
        (damaged_within, "", "a.parquet is damaged"),
        (foreign, "", "no `patchsieve` metadata"),
        (empty, "", "no rows to train on"),
        (not_a_number, "", "row 5 has a score that is not a finite number (nan)"),
        (no_pixels, "", "has no column `patches` or `pixels`"),
        (sound, "--context full", "has no column `pixels`"),
        (no_table, "", "no score table in"),
        (sound, "--batch-size 4096", "fewer than one batch of 4096"),
        (sound, "--model resnet18", "resnet18 is no plain vision transformer"),
        (sound, "--depth 13", "has 12 blocks, fewer than the depth 13"),
        (sound, "--depth 0", "--depth is 0"),
        (sound, "--layer-decay 1.5", "--layer-decay is 1.5"),
        (sound, "--clip -1", "--clip is -1"),
        (sound, "--beta2 1", "--beta2 is 1.0"),
        (sound, "--weights here.pth", "no weights at here.pth"),
        (sound, "--weights teacher", "--teacher tiny has digest 9746d94b2184ed64"),
        (sound, "--teacher tiny", "--teacher does nothing with --weights random"),
    ],
)
def test_one_line_and_exit_2(
    tables: Callable[[Path], list[str]],
    arguments: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "ranker"
    given = tables(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*given, "--out", str(out), *OPTIONS, *arguments.split()])
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 2, told
    assert message in told
    assert len(told.splitlines()) == 1
    assert told.startswith("patchsieve train: ")
    assert not out.exists()
