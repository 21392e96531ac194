"""`patchrank train` as a user runs it: real tables, real Ray Train, in processes of their own."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patchrank.ranker.checkpoint import load_ranker
from tests.helpers.pixel_tables import SIDE, write_pixel_table

pytestmark = pytest.mark.ray
OPTIONS = "--model vit_tiny_patch16_224 --head token --batch-size 16 --warmup-epochs 2 --held-out 0.2 --base-lr 0.01"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pixel_table(tmp_path_factory.mktemp("tables") / "a.parquet", images=range(40), views=2)


def train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "patchrank.jobs.train", *arguments, *OPTIONS.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(400)
def test_two_workers_fit_one_ranker_and_a_second_run_needs_resume(table: str, tmp_path: Path) -> None:
    out = str(tmp_path / "ranker")
    done = train(table, "--out", out, "--epochs", "16", "--measure-every", "8", "--workers", "2")
    assert done.returncode == 0, done.stderr
    ranker = load_ranker(out)
    assert ranker.model.config.image_size == SIDE
    assert ranker.temperature > 0
    with (tmp_path / "ranker" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [16, 32]
    assert float(rows[-1]["agreement"]) > 0.7
    again = train(table, "--out", out, "--epochs", "16")
    assert again.returncode == 2
    assert "--resume" in again.stderr


@pytest.mark.timeout(400)
def test_a_longer_training_goes_on_from_its_checkpoint(table: str, tmp_path: Path) -> None:
    out = str(tmp_path / "ranker")
    first = train(table, "--out", out, "--epochs", "4", "--measure-every", "2")
    assert first.returncode == 0, first.stderr
    before = load_ranker(out)
    more = train(table, "--out", out, "--epochs", "6", "--measure-every", "2", "--resume")
    assert more.returncode == 0, more.stderr
    with (tmp_path / "ranker" / "curve.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [4, 8, 12]
    after = load_ranker(out)
    assert after.digest != before.digest
    same = [
        torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)
    ]
    assert not all(same)


def test_dry_run_says_steps_and_writes_nothing(table: str, tmp_path: Path) -> None:
    done = train(table, "--out", str(tmp_path / "ranker"), "--epochs", "8", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "16 steps of 16 rows" in done.stdout
    assert not (tmp_path / "ranker").exists()


def test_a_foreign_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table")
    done = train(str(tmp_path / "a.parquet"), "--out", str(tmp_path / "ranker"))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
