"""Reading: the bytes that a store reports or an InfrastructureError; what passes is tried again."""

from __future__ import annotations

import errno
import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage import retry as storage_retry
from patchsieve.pipeline.storage import sources as storage_sources
from patchsieve.pipeline.storage import web
from tests.helpers.servers import FileServer, S3Store, Trouble, serve_files

DATA = random.Random(0).randbytes(3_000_000)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as files:
        files.files["/a.bin"] = DATA
        yield files


@pytest.fixture
def s3(s3: S3Store) -> S3Store:
    storage.commit_bytes(DATA, s3.url("a.bin"), run_id="r")
    return s3


def read(url: str, step: int = 700_001, start: int = 0) -> bytes:
    with storage.open_stream(url, start=start) as stream:
        parts = list(iter(lambda: stream.read(step), b""))
        assert stream.position == stream.size == len(DATA)
        stream.check_unchanged()
    assert all(len(part) == step for part in parts[:-1])
    return b"".join(parts)


@pytest.mark.parametrize("kind", ["local", "memory", "s3", "http"])
def test_streams_and_ranges(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_sources, "RANGE_BLOCK", 400_000)
    if kind == "http":
        url = request.getfixturevalue("server").url("/a.bin")
    else:
        bases = {"local": str(tmp_path), "memory": "memory://x"}
        url = (
            storage.join(bases[kind], "a.bin")
            if kind in bases
            else request.getfixturevalue("s3").url("a.bin")
        )
        storage.commit_bytes(DATA, url, run_id="r")
    assert read(url) == DATA
    assert read(url, step=10**9) == DATA
    assert read(url, start=2_999_999) == DATA[-1:]
    assert read(url, start=len(DATA)) == b""
    with storage.ByteStream(storage.stat(url), start=100_000, stop=1_500_000) as stream:
        assert stream.read(10**9) == DATA[100_000:1_500_000]
        assert stream.read(1) == b""
    assert storage.read_bytes(url) == DATA
    assert storage.read_range(url, 1000, 500_000) == DATA[1000:500_000]
    assert storage.read_range(url, 5, 5) == b""
    with pytest.raises(InfrastructureError):
        storage.read_range(url, len(DATA) - 5, len(DATA) + 5)
    with pytest.raises(UserError, match="more than 1000"):
        storage.read_bytes(url, limit=1000)
    with pytest.raises(FileNotFoundError, match="none: not found"):
        storage.open_stream(url.replace("a.bin", "none"))
    file = storage.parquet_source(url)
    assert (file.seek(-10, io.SEEK_END), file.read(), file.read(5), file.tell()) == (
        2_999_990,
        DATA[-10:],
        b"",
        3_000_000,
    )
    file.seek(7)
    assert bytes(io.BufferedReader(file).read(20)) == DATA[7:27]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_read_that_breaks_off_goes_on(server: FileServer, kind: str, ranges: bool) -> None:
    server.ranges = ranges
    server.troubles["/a.bin"] = [
        Trouble(kind, 1_000_000),
        Trouble("status", status=503),
        Trouble(kind, 1_200_000),
    ]
    assert read(server.url("/a.bin")) == DATA
    assert len([asked for asked in server.asked if asked[0] == "GET"]) == 4


def test_a_read_that_always_breaks_off_is_given_up(server: FileServer) -> None:
    server.ranges = False
    server.forever["/a.bin"] = Trouble("cut", 1_000_000)
    with pytest.raises(
        InfrastructureError,
        match=r"http://127\.0\.0\.1:\d+/a\.bin broke off after \d+ of 3000000 bytes: Client",
    ):
        read(server.url("/a.bin"))
    # Five attempts in a row that got no further; how often a broken answer got further is a matter of timing.
    reached = [(asked[2] or "") for asked in server.asked if asked[0] == "GET"]
    assert reached[-4:] == reached[-1:] * 4
    assert reached.count(reached[-1]) == 4 < len(reached)


def test_a_server_that_says_nothing_more_is_given_up(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "READ_TIMEOUT_S", 0.2)
    server.troubles["/a.bin"] = [Trouble("stall", 10_000)]
    assert read(server.url("/a.bin")) == DATA
    server.ranges = False
    server.forever["/a.bin"] = Trouble("stall", 10_000)
    with pytest.raises(InfrastructureError, match="imeout"):
        read(server.url("/a.bin"))


def test_a_busy_server_is_asked_again(server: FileServer) -> None:
    busy = [Trouble("status", status=503)] * 2
    server.head_trouble["/a.bin"], server.troubles["/a.bin"] = list(busy), list(busy) * 2
    assert read(server.url("/a.bin")) == DATA


def test_a_file_that_changes_on_the_server_is_noticed(server: FileServer) -> None:
    with storage.open_stream(server.url("/a.bin")) as stream:
        stream.read(10)
        server.files["/a.bin"] = DATA[::-1]
        with pytest.raises(InfrastructureError, match="changed while it was read"):
            stream.check_unchanged()
    with storage.open_stream(server.url("/a.bin")) as stream:
        server.files["/a.bin"] = DATA + b"more"
        with pytest.raises(InfrastructureError, match="changed while it was read"):
            stream.read(10)


def test_a_length_that_is_not_told_is_refused(server: FileServer) -> None:
    server.lengths = False
    with pytest.raises(UserError, match="does not tell the length"):
        storage.open_stream(server.url("/a.bin"))


def test_s3_reads_that_break_off(s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_sources, "RANGE_BLOCK", 1_000_000)
    s3.break_reads = 2
    assert read(s3.url("a.bin")) == DATA
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    s3.break_reads = 10**6
    with pytest.raises(InfrastructureError, match=r"reading s3://test-bucket/a\.bin"):
        read(s3.url("a.bin"))


def test_a_store_that_gives_less_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.commit_bytes(DATA, "memory://x/a.bin", run_id="r")
    store = fsspec.get_filesystem_class("memory")
    whole = store.cat_file
    monkeypatch.setattr(store, "cat_file", lambda *given, **options: whole(*given, **options)[:-1])
    with pytest.raises(InfrastructureError, match="2999999 of 3000000 bytes"):
        read("memory://x/a.bin")


def test_local_file_that_shrinks_or_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    with storage.open_stream(str(path)) as stream:
        stream.read(10)
        os.truncate(path, 2_000_000)
        with pytest.raises(InfrastructureError, match="broke off after 2000000 of 3000000"):
            stream.read(len(DATA))
        path.unlink()
        with pytest.raises(InfrastructureError, match="was removed"):
            stream.check_unchanged()
    with pytest.raises(UserError, match="is a folder"):
        storage.open_stream(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InfrastructureError, match="neither a file nor a folder"):
        storage.stat(str(tmp_path / "pipe"))
    assert storage.list_folder(str(tmp_path)) == []


@pytest.mark.parametrize("kind", ["local", "http"])
def test_parquet_through_pyarrow(kind: str, tmp_path: Path, server: FileServer) -> None:
    table = pa.table({"x": list(range(100_000)), "y": [str(i) for i in range(100_000)]})
    scratch = tmp_path / "a.parquet"
    pq.write_table(table, scratch, row_group_size=20_000)
    server.files["/a.parquet"] = scratch.read_bytes()
    url = str(scratch) if kind == "local" else server.url("/a.parquet")
    with storage.parquet_source(url) as source:
        file = pq.ParquetFile(source)
        assert file.read_row_group(3).equals(table.slice(60_000, 20_000))
        if kind == "http":
            server.forever["/a.parquet"] = Trouble("cut", 10)
            with pytest.raises(InfrastructureError):
                file.read_row_group(1)


def test_what_is_tried_again_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 1.0)
    faults: list[BaseException] = []

    def call() -> str:
        if faults:
            raise faults.pop(0)
        return "done"

    passing = [
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EIO, "bad"),
        storage_retry.ShortReadError("short"),
    ]
    faults[:] = passing
    assert storage.with_retry(call, what="reading x") == "done"
    for number, pause in enumerate(pauses):
        assert 0.5 * 2**number <= pause <= 1.5 * 2**number
    faults[:] = [*passing, TimeoutError("at last")]
    with pytest.raises(InfrastructureError, match=r"^reading x: TimeoutError: at last$"):
        storage.with_retry(call, what="reading x")
    pauses.clear()
    for fault, told in (
        (FileNotFoundError("x"), FileNotFoundError),
        (PermissionError(13, "no"), InfrastructureError),
        (OSError(28, "full"), InfrastructureError),
        (FileExistsError("x"), FileExistsError),
        (UserError("x"), UserError),
        (KeyError("of a client, on no list of names"), InfrastructureError),
    ):
        faults[:] = [fault]
        with pytest.raises(told):
            storage.with_retry(call, what="reading x")
    assert pauses == []
