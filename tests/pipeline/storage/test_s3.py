"""An object store that has troubles, over the S3 protocol: what passes is waited out, the rest is told in a line."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.storage import retry as storage_retry
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.checkout import ROOT
from tests.helpers.impatient import impatient_s3
from tests.helpers.servers import S3Store, Trouble
from tests.helpers.tables import shard_record, write_table

DATA = bytes(range(256)) * 2000
BUSY = Trouble("status", status=503)
SECRET = "test-secret-key"


@pytest.fixture
def s3(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)
    storage.commit_bytes(DATA, s3.url("folder/a.bin"), run_id="r")
    return s3


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """The store without the retries of its client libraries, which have pauses of their own."""
    with impatient_s3(monkeypatch) as store:
        storage.commit_bytes(DATA, store.url("folder/a.bin"), run_id="r")
        yield store


def calls(store: S3Store) -> dict[str, tuple[str, Callable[[], object], object]]:
    """Requests of a call as a pattern, the call, and what it gives."""
    url = store.url("folder/a.bin")
    return {
        "read": ("GET folder/a.bin", lambda: storage.read_bytes(url), DATA),
        "range": ("GET folder/a.bin", lambda: storage.read_range(url, 5, 300_000), DATA[5:300_000]),
        "list": (
            "GET .*list-type",
            lambda: [info.size for info in storage.list_folder(store.url("folder"))],
            [len(DATA)],
        ),
        "look up": ("HEAD folder/a.bin", lambda: storage.stat(url).size, len(DATA)),
        "write": ("PUT", lambda: storage.commit_bytes(DATA, url, run_id="r"), None),
    }


TROUBLES = {
    "throttled": [BUSY] * 4,
    "reset": [Trouble("reset", 0), Trouble("reset", 100)],
    "cut": [Trouble("cut", 0), Trouble("cut", 100)],
    "silent": [Trouble("stall", 100)],
    "slow": [Trouble("slow")],
}


@pytest.mark.parametrize("call", ["read", "range", "list", "look up", "write"])
def test_what_passes_is_waited_out(alone: S3Store, call: str) -> None:
    pattern, what, expected = calls(alone)[call]
    # An answer without a body does not break off.
    for trouble in TROUBLES if call != "look up" else ["throttled"]:
        alone.troubles = [(pattern, one) for one in TROUBLES[trouble]]
        assert what() == expected, trouble
        assert storage.read_bytes(alone.url("folder/a.bin")) == DATA


def test_throttling_is_waited_out_by_the_client_too(s3: S3Store) -> None:
    s3.troubles = [("GET folder", BUSY)]
    assert storage.read_bytes(s3.url("folder/a.bin")) == DATA
    assert s3.count("GET folder/a.bin") == 2


@pytest.mark.parametrize("call", ["read", "range", "list", "look up", "write"])
def test_what_does_not_pass_is_given_up_after_five_attempts(
    alone: S3Store, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    pattern, what, _ = calls(alone)[call]
    alone.forever = {pattern: BUSY}
    alone.asked.clear()
    with caplog.at_level("DEBUG"), pytest.raises(InfrastructureError) as told:
        what()
    assert alone.count(pattern) == storage_retry.ATTEMPTS
    assert "s3://test-bucket/folder" in str(told.value)
    shown = "".join(traceback.format_exception(told.value)) + repr(told.value) + caplog.text
    assert SECRET not in shown
    assert "\n" not in str(told.value)


def test_objects_and_buckets_that_are_not_there(s3: S3Store) -> None:
    for url in (s3.url("none"), "s3://no-such-bucket/a"):
        with pytest.raises(FileNotFoundError, match="not found"):
            storage.read_bytes(url)
    assert storage.list_folder(s3.url("none")) == []


def test_objects_that_come_later_are_seen_by_the_next_listing(s3: S3Store) -> None:
    folder = s3.url("corpus")
    for number in range(3):
        storage.commit_bytes(b"%d" % number, storage.join(folder, f"{number}.tar"), run_id="r")
        assert [len(storage.list_folder(folder)), len(storage.glob(f"{folder}/*.tar"))] == [number + 1] * 2
        assert len(expand_shards([folder])) == number + 1
    storage.remove(storage.join(folder, "0.tar"))
    assert len(storage.list_folder(folder)) == 2


def test_a_table_above_the_limit_of_a_single_put(
    alone: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 2**20
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, **options: part)
    storage.commit_bytes(DATA, alone.url("corpus/a.tar"), run_id="r")
    (shard,) = expand_shards([alone.url("corpus")])
    output = OutputFolder(alone.url("out"), SCORES, run_id="run-1")
    small = write_table(tmp_path / "small.parquet", shard_record(shard, DATA), images=1)
    output.commit(shard, small, None)
    url = output.record_url(shard)
    before = storage.read_bytes(url)
    large = write_table(tmp_path / "large.parquet", shard_record(shard, DATA), images=200)
    assert large.stat().st_size > 2 * part

    # A part that never arrives: the table stays as it was, and the parts that did arrive are dropped.
    alone.forever = {"PUT out/scores/.*partNumber=2": BUSY}
    with pytest.raises(InfrastructureError, match="reduce your request rate"):
        output.commit(shard, large, None)
    assert storage.read_bytes(url) == before
    assert alone.count("POST out/scores/.*uploads") == alone.count("DELETE out/scores/.*uploadId") == 5
    assert alone.count("POST out/scores/.*uploadId") == 0

    alone.forever = {}
    alone.asked.clear()
    alone.troubles = [("PUT out/scores/.*partNumber=1", BUSY), ("POST out/scores/.*uploadId", BUSY)]
    output.commit(shard, large, None)
    assert storage.read_bytes(url) == large.read_bytes()
    assert alone.count("PUT out/scores/.*partNumber=3") > 0
    assert alone.count("PUT out/scores/[^?]*$") == 0


def test_credentials_of_a_profile(s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(f"[profile team]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    (tmp_path / "credentials").write_text(
        f"[team]\naws_access_key_id = profile-key\naws_secret_access_key = {SECRET}\n"
    )
    for name in s3.environment():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    s3.access_keys.clear()
    assert storage.read_bytes(s3.url("folder/a.bin")) == DATA
    assert s3.access_keys == {"profile-key"}


def test_what_is_sent_to_workers_holds_no_credentials_and_finds_theirs(s3: S3Store) -> None:
    files, _ = storage.arrow_filesystem(s3.url("folder"))
    assert files.get_file_info("test-bucket/folder/a.bin").size == len(DATA)
    sent = pickle.dumps((files, expand_shards([s3.url("folder/a.bin")])))
    for secret in s3.environment().values():
        assert secret.encode() not in sent
    s3.access_keys.clear()
    told = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.storage.unpickler"],
        cwd=ROOT,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "worker-key"},
        input=sent,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert told.stdout.split() == [str(len(DATA)).encode()] * 2
    assert s3.access_keys == {"worker-key"}
