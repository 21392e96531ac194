"""Shards and outputs beyond this machine: stores that break off, and an object store end to end."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.storage.retry import ATTEMPTS
from tests.helpers.faults import Faults
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_processes import run_here, score_process
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.helpers.servers import Trouble, s3_for_this_process, serve_files

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.slow
def test_a_store_that_breaks_off_is_asked_again_and_never_makes_a_shard_shorter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_small_teacher(tmp_path)
    names = ("cut", "reset", "never")
    paths = [
        write_shard(tmp_path / f"{name}.tar", photo_samples(4, number, 64, 64))
        for number, name in enumerate(names)
    ]
    out = tmp_path / "out"
    with serve_files() as server:
        server.files = {f"/{path.name}": path.read_bytes() for path in paths}
        urls = [server.url(f"/{path.name}") for path in paths]
        # So many times without a byte end an attempt; fewer do not.
        server.troubles = {
            "/cut.tar": [Trouble("cut", 0)] * ATTEMPTS,
            "/reset.tar": [Trouble("reset", 2000), Trouble("reset", 0)],
        }
        server.forever = {"/never.tar": Trouble("cut", 0)}
        config = score_config(urls, out, teacher)
        assert run_here(config, tmp_path) == 1
        asked = Counter(path for method, path, _ in server.asked if method == "GET")
        assert asked == {"/cut.tar": ATTEMPTS + 1, "/reset.tar": 3, "/never.tar": 3 * ATTEMPTS}
        assert [storage.split_name(line.split(": ")[1])[1] for line in failures(capsys)] == ["never.tar"]
        (record,) = (out / "failed").glob("*.json")
        failure = json.loads(record.read_text())
        assert failure["shard"] == urls[2]
        assert failure["attempts"] == 3
        assert "broke off after 0 of" in failure["reason"]
        score_here(score_config(urls[:2], tmp_path / "expected", teacher))
        assert rows_of(out) == rows_of(tmp_path / "expected")

        # Without tags, contents are compared before Ray starts; the store falls silent meanwhile.
        server.etags = False
        server.forever["/cut.tar"] = Trouble("stall", 100)
        server.asked.clear()
        with score_process(config, tmp_path) as run:
            run.wait_for(lambda: ("GET", "/cut.tar", None) in server.asked, "the comparison has begun")
            assert run.stop(signal.SIGTERM) == 143, run.output
    assert "the next run tidies up" not in run.output
    assert not (out / "owner.json").exists()


def failures(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]


@pytest.mark.slow
def test_from_s3_to_s3_a_second_run_adds_new_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = save_small_teacher(tmp_path)
    with s3_for_this_process(monkeypatch) as store:
        Faults(folder=str(tmp_path), environment=store.environment()).put_in_actors(monkeypatch)

        def upload(number: int) -> None:
            local = write_shard(tmp_path / f"{number}.tar", photo_samples(3, number, 64, 64))
            storage.commit_file(local, store.url(f"corpus/{number}.tar"), run_id="upload")

        upload(0)
        upload(1)
        out, corpus = store.url("out"), [store.url("corpus/*.tar")]
        config = score_config(corpus, out, teacher)
        assert run_here(config, tmp_path) == 0
        first = {info.url: info for info in storage.list_folder(store.url("out/scores"))}
        assert len(first) == 2

        capsys.readouterr()
        upload(2)
        assert run_here(config, tmp_path) == 0
        assert "3 of 3 shards done (2 by earlier runs)" in capsys.readouterr().out
        second = {info.url: info for info in storage.list_folder(store.url("out/scores"))}
        assert len(second) == 3
        assert first.items() <= second.items()
        assert not storage.exists(store.url("out/owner.json"))
        score_here(score_config(corpus, tmp_path / "expected", teacher))
        assert rows_of(out) == rows_of(tmp_path / "expected")
