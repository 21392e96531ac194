"""`patchsieve train` as a user runs it: real tables, real Ray Train, processes that are killed; three runs in all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from patchsieve.jobs.train import main
from patchsieve.pipeline import storage
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker
from patchsieve.ranker.train import run as run_module
from patchsieve.ranker.train.config import TrainConfig
from patchsieve.ranker.train.plan import make_plan
from patchsieve.ranker.train.progress import finished, read_curve
from tests.helpers.forks import below
from tests.helpers.pixel_tables import SIDE, write_pixel_table

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Long enough to be killed on the way.
OPTIONS = """
    --model vit_tiny_patch16_224 --depth 1 --head token --batch-size 16 --warmup-views 2 --held-out 0.2
    --base-lr 0.01 --views-per-image 80 --measure-every 20 --workers 2
"""
OFTEN = ("--checkpoint-minutes", "0.01")
STEPS = 160
LIMIT_S = 500


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pixel_table(tmp_path_factory.mktemp("tables") / "a.parquet", images=range(40), views=2)


def command(table: str, out: Path, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "patchsieve.jobs.train", table, "--out", str(out)]
    return [*program, *OPTIONS.split(), *arguments]


def train(table: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(table, out, *arguments), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def ended_with(arguments: list[str]) -> object:
    """The exit code of `patchsieve train` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def refused(capsys: pytest.CaptureFixture[str], table: str, out: Path, *arguments: str) -> str:
    """What is said of a command that is refused, in this process."""
    assert ended_with([table, "--out", str(out), *OPTIONS.split(), *arguments]) == 2
    return capsys.readouterr().err


@contextlib.contextmanager
def training(table: str, out: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command(table, out, *OFTEN), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something is there; fails where the process ends before."""
    limit = time.monotonic() + LIMIT_S
    while not found():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of Ray Train that fit the ranker."""
    found = []
    for child in below(process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def whole(table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "ranker"
    done = train(table, out)
    assert done.returncode == 0, done.stderr
    assert "on visible patches" in done.stdout
    assert f"complete: {STEPS} steps" in done.stdout
    return out


def last_of(out: Path) -> LoadedRanker:
    return load_ranker(str(out / "last"))


def test_two_workers_fit_one_ranker(whole: Path, table: str) -> None:
    ranker = load_ranker(str(whole))
    assert ranker.model.config.image_size == SIDE
    assert ranker.temperature > 0
    curve = read_curve(str(whole))
    assert [int(point["step"]) for point in curve] == [40, 80, 120, 160]
    assert float(curve[-1]["agreement"]) > 0.7


def test_what_another_run_left_is_not_trained_over(
    whole: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "add --resume" in refused(capsys, table, whole)
    changed = refused(capsys, table, whole, "--resume", "--base-lr", "0.02")
    assert "base_lr: 0.01 -> 0.02" in changed


def test_a_training_that_is_over_is_told_of_again_without_ray(
    whole: Path, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "ray_session", None)
    assert ended_with([table, "--out", str(whole), *OPTIONS.split(), "--resume"]) == 0
    assert f"complete: {STEPS} steps" in capsys.readouterr().out
    # One that was longer when it stopped is not over, nor is one that is to go on for longer.
    assert not finished(str(whole), STEPS + 1)
    assert not finished(str(whole), STEPS // 2)


def test_a_training_whose_output_another_one_took_stops(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("patchsieve.pipeline.output.owner.HEARTBEAT_S", 0.02)
    monkeypatch.setattr(run_module, "ray_session", lambda stop: contextlib.nullcontext())
    out = tmp_path / "out"

    def taken_over(*arguments: object) -> None:
        for _ in range(600):  # a heartbeat that has just seen its own file writes that again
            content = json.dumps({"run_id": "another", "host": "elsewhere", "pid": 5}).encode()
            storage.commit_bytes(content, str(out / "owner.json"), run_id="another")
            threading.Event().wait(0.1)
        pytest.fail("it was not told to stop")

    monkeypatch.setattr(run_module, "_fit", taken_over)
    plan = make_plan(TrainConfig(tables=(table,), out=str(out), depth=1, batch_size=16, held_out=0.2))
    assert run_module.train(plan) == 128 + signal.SIGTERM
    assert "was taken over by run another on elsewhere (process 5)" in caplog.text
    assert json.loads((out / "owner.json").read_bytes())["run_id"] == "another"


def newest_checkpoint(out: Path) -> str:
    """Name of the last whole checkpoint, which sorts by its time; empty without one."""
    return max((file.parent.name for file in (out / "ray").glob("checkpoint_*/state.pt")), default="")


def test_a_killed_worker_and_a_stop_with_resume_change_nothing(
    whole: Path, table: str, tmp_path: Path
) -> None:
    out = tmp_path / "ranker"
    with training(table, out) as process:
        wait_for(lambda: newest_checkpoint(out) != "", process)
        workers = workers_of(process)
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGKILL)
        # Ray starts others, which go on from the last checkpoint: there is a later one.
        wait_for(
            lambda: not {worker.pid for worker in workers} & {left.pid for left in workers_of(process)},
            process,
        )
        before = newest_checkpoint(out)
        wait_for(lambda: newest_checkpoint(out) > before, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 128 + signal.SIGTERM
    assert not (out / "last").exists(), "the run was over before it was stopped"
    assert not os.path.exists(out / "owner.json")
    resumed = train(table, out, "--resume", "--log-format", "json")
    assert resumed.returncode == 0, resumed.stderr
    # Standard output holds nothing else, of Ray Train's neither.
    events = [json.loads(line) for line in resumed.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("run begun", "run ended")
    measured = [event for event in events if event["event"] == "measured"]
    assert measured[-1]["step"] == STEPS
    assert {(event["job"], event["run_id"]) for event in events} == {("train", events[0]["run_id"])}
    assert (out / "train.yaml").read_text().startswith(f"# run {events[0]['run_id']}\n")
    # Bit for bit: the steps after a checkpoint are those of an uninterrupted run, on one thread per worker.
    assert last_of(out).digest == last_of(whole).digest
    assert load_ranker(str(out)).digest == load_ranker(str(whole)).digest


def test_dry_run_says_steps_and_writes_nothing(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with([table, "--out", str(tmp_path / "ranker"), *OPTIONS.split(), "--dry-run"]) == 0
    assert f"{STEPS} steps of 16 rows" in capsys.readouterr().out
    assert not (tmp_path / "ranker").exists()
