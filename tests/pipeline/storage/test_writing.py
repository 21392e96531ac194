"""Writing and naming: whole objects or nothing, one creator among many, nothing secret in any text."""

from __future__ import annotations

import errno
import fcntl
import os
import stat as python_stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage import retry as storage_retry
from tests.helpers.servers import S3Store, Trouble, serve_files


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)


@pytest.fixture(params=["local", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on every kind of store that is written to."""
    if request.param == "local":
        yield str(tmp_path)
    elif request.param == "s3":
        yield request.getfixturevalue("s3").url("base")
    else:
        yield "memory://base"
        fsspec.filesystem("memory").rm("/base", recursive=True)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("/a/../b//c.tar", "/b/c.tar"),
        ("file:///a b/é#?.tar", "/a b/é#?.tar"),
        ("s3://bucket/a/b.tar", "s3://bucket/a/b.tar"),
        ("S3A://Bucket/a.tar", "s3://Bucket/a.tar"),
        ("gcs://b/a.tar/", "gs://b/a.tar"),
        ("s3://key:secret@bucket/a.tar?versionId=1", "s3://bucket/a.tar"),
        ("s3://bucket/run#3/a?.tar", "s3://bucket/run#3/a?.tar"),
        ("https://user:sec?r#et@Host:443/A%20b.tar?X-Sig=secret&b=1#frag", "https://host/A%20b.tar"),
        ("http://[::1]:80/a.tar", "http://[::1]/a.tar"),
        ("http://h:8080/a.tar", "http://h:8080/a.tar"),
        (
            "abfss://container@account.dfs.core.windows.net/a.tar",
            "abfss://container@account.dfs.core.windows.net/a.tar",
        ),
        ("hf://datasets/o/r@main/a.tar", "hf://datasets/o/r@main/a.tar"),
        ("memory:///a/b", "memory://a/b"),
    ],
)
def test_canonical_names(spec: str, name: str) -> None:
    assert storage.canonical_url(spec) == name
    assert storage.canonical_url(name) == name


def test_relative_paths_are_absolute_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.canonical_url("a.tar") == storage.absolute_url(Path("a.tar")) == str(tmp_path / "a.tar")
    assert storage.absolute_url("s3://u:p@b/a?v=1") == "s3://u:p@b/a?v=1"
    assert storage.join("/a/", "b", "c") == "/a/b/c"
    assert storage.join("/", "b") == "/b"
    assert storage.split_name("http://h/a/b.tar?x=/y") == ("http://h/a", "b.tar?x=/y")
    assert storage.split_name("s3://b/run#3/a?.tar") == ("s3://b/run#3", "a?.tar")
    with pytest.raises(UserError, match="empty"):
        storage.join("", "a")


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("https://me:sec?r#et@H/a/{0..9}.tar?sig=secret", "https://H/a/{0..9}.tar"),
        ("@https://h/list.txt?sig=secret", "@https://h/list.txt"),
        ("s3://key:secret@b/part-????.tar?X-Amz-Signature=secret", "s3://b/part-????.tar"),
        ("s3://b/x-?/date=2024/*.tar", "s3://b/x-?/date=2024/*.tar"),
        ("hf://datasets/o/r@main/a.tar", "hf://datasets/o/r@main/a.tar"),
        ("a:b@c/?x=1.tar", "a:b@c/?x=1.tar"),
        ("jpg;png", "jpg;png"),
    ],
)
def test_what_is_kept_of_what_a_user_wrote(spec: str, kept: str) -> None:
    assert storage.without_secrets(spec) == kept


def test_a_query_holds_no_pattern() -> None:
    assert not storage.has_pattern("https://h/a.tar?sig=a*b[c]")
    assert storage.has_pattern("https://h/*.tar?sig=a*b")
    assert storage.has_pattern("s3://b/run#3/a?.tar")


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.commit_bytes(b"x", str(tmp_path / "a"), run_id="r")
        storage.create_exclusive(str(tmp_path / "b"), b"x")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in "ab"} == {0o640}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda url, file: storage.commit_bytes(b"x", url, run_id="r"),
            ["fsync .b.r", "replace b", "fsync a"],
        ),
        (
            lambda url, file: storage.commit_file(file, url, run_id="r"),
            ["fsync .b.r", "replace b", "fsync a"],
        ),
        (
            lambda url, file: storage.create_exclusive(url, b"x"),
            ["fsync .b.create", "link b", "fsync a"],
        ),
        (lambda url, file: storage.move(str(file), url), ["replace b", "fsync a", "fsync from"]),
    ],
    ids=["bytes", "file", "exclusive", "move"],
)
def test_bytes_are_on_the_disk_before_they_have_their_name_and_the_name_before_it_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[str, Path], object],
    expected: list[str],
) -> None:
    made: list[str] = []

    def note(name: str) -> None:
        call = getattr(os, name)

        def noted(*arguments: Any) -> None:
            place = os.readlink(f"/proc/self/fd/{arguments[0]}") if name == "fsync" else str(arguments[1])
            made.append(f"{name} {'.'.join(Path(place).name.split('.')[:3])}")
            if name == "fsync" and os.path.isfile(place):
                assert os.path.getsize(place) == 1, "all bytes have left the process"
            call(*arguments)

        monkeypatch.setattr(os, name, noted)

    file, folder = tmp_path / "from" / "file", tmp_path / "a"
    for made_here in (file.parent, folder):
        made_here.mkdir()
    file.write_bytes(b"x")
    for name in ("fsync", "replace", "link"):
        note(name)
    change(str(folder / "b"), file)
    assert made == expected
    assert (folder / "b").read_bytes() == b"x"


def test_texts_lose_credentials() -> None:
    text = "403, url=URL('https://me:secret@h/a.tar?X-Amz-Signature=secret'): see s3://me:secret@b/k,"
    text += " 'me:secret@b', zip://x::http://me:secret@h, ?sig=secret"
    told = storage.redact(text)
    assert "secret" not in told
    assert "https://h/a.tar" in told


def secret_failures(port: int) -> list[Callable[[], object]]:
    good = f"http://user:secret@127.0.0.1:{port}/a.tar?sig=secret#secret"
    refused = "http://user:secret@127.0.0.1:9/a.tar?sig=secret"
    return [
        lambda: storage.stat(good.replace("a.tar", "none")),
        lambda: storage.stat(refused),
        lambda: storage.read_bytes(good),
        lambda: storage.read_range(good, 5, 8),
        lambda: storage.list_folder(refused),
        lambda: storage.glob(refused.replace("a.tar", "*.tar")),
        lambda: storage.commit_bytes(b"", good, run_id="r"),
        lambda: storage.commit_bytes(b"", "s3://user:secret@bucket/a?secret=secret", run_id="r"),
        lambda: storage.remove(good),
        lambda: storage.refuse_unsafe("pipe:curl " + good),
    ]


def test_credentials_are_in_no_error(s3: S3Store) -> None:
    with serve_files() as server:
        server.files["/a.tar"] = b"0123456789"
        server.forever["/a.tar"] = Trouble("cut", 2)
        server.ranges = False
        for failure in secret_failures(server.port):
            with pytest.raises((FileNotFoundError, InfrastructureError, UserError)) as told:
                failure()
            shown = "".join(traceback.format_exception(told.value, limit=0)) + repr(told.value)
            assert "secret" not in shown
            assert "\n" not in str(told.value)


def test_commit_replaces_and_is_seen_at_once(base: str, tmp_path: Path) -> None:
    url = storage.join(base, "new folder", "a.json")
    folder = storage.split_name(url)[0]
    assert storage.list_folder(folder) == []
    assert not storage.exists(url)
    for content in (b"first", b"second, longer", b""):
        storage.commit_bytes(content, url, run_id="run1")
        assert storage.read_bytes(url) == content
        assert [info.size for info in storage.list_folder(folder)] == [len(content)]
    scratch = tmp_path / "scratch"
    scratch.write_bytes(b"x" * 3_000_000)
    storage.commit_file(scratch, url, run_id="run1")
    storage.commit_file(scratch, storage.join(folder, "b.parquet"), run_id="run1")
    assert storage.read_range(url, 2_999_998, 3_000_000) == b"xx"
    names = [storage.split_name(info.url)[1] for info in storage.list_folder(folder)]
    assert names == ["a.json", "b.parquet"]
    assert [info.url for info in storage.glob(storage.join(base, "new folder", "*.par*"))] == [
        storage.join(folder, "b.parquet")
    ]
    assert storage.stat(folder).is_folder
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_commit_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    os.umask(old := os.umask(0o022))
    storage.commit_bytes(b"1", str(tmp_path / "a"), run_id="run1")
    assert os.listdir(tmp_path) == ["a"]
    storage.move(str(tmp_path / "a"), str(tmp_path / "new" / "er" / "b"))
    assert (tmp_path / "new" / "er" / "b").read_bytes() == b"1"
    storage.move(str(tmp_path / "new" / "er" / "b"), str(tmp_path / "a"))
    assert python_stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~old


def test_commit_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "a")
    storage.commit_bytes(b"old", url, run_id="run1")

    def fail(error: OSError) -> None:
        def replace(source: str, target: str) -> None:
            raise error

        monkeypatch.setattr(os, "replace", replace)

    fail(OSError(28, "No space left on device"))
    with pytest.raises(InfrastructureError, match="No space left"):
        storage.commit_bytes(b"new", url, run_id="run1")
    fail(PermissionError(13, "Permission denied"))
    with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
        storage.commit_bytes(b"new", url, run_id="run1")
    monkeypatch.undo()
    assert storage.read_bytes(url) == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a", "sftp://127.0.0.1/a", "zip://a", "pipe:cat"])
def test_places_that_are_not_written_to(url: str) -> None:
    for write in (
        lambda: storage.commit_bytes(b"", url, run_id="r"),
        lambda: storage.create_exclusive(url, b""),
        lambda: storage.make_folder(url),
        lambda: storage.remove(url),
    ):
        readable = url.startswith(("http", "sftp"))
        with pytest.raises(
            UserError, match="results go to a local or mounted folder" if readable else url[:3]
        ):
            write()


def test_a_file_where_a_folder_should_be(tmp_path: Path, s3: S3Store) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file"):
            storage.make_folder(str(folder))
    with pytest.raises(UserError, match="cannot"):
        storage.commit_bytes(b"", str(tmp_path / "file" / "a"), run_id="r")
    with pytest.raises(InfrastructureError, match="bucket is not there"):
        storage.commit_bytes(b"", "s3://no-such-bucket/a", run_id="r")
    storage.make_folder(str(tmp_path / "x" / "y"))
    storage.make_folder(str(tmp_path / "x" / "y"))
    assert storage.remove_temporaries(s3.url("x"), keep_run_id=None) == 0
    assert storage.remove_temporaries(str(tmp_path / "none"), keep_run_id=None) == 0


def test_patterns(base: str, tmp_path: Path) -> None:
    names = ["a.tar", "b.tar", ".c.tar", "d/a.tar", "d/e/f.tar", "d.x/a.tar", "[g].txt"]
    for name in names:
        storage.commit_bytes(b"", storage.join(base, name), run_id="r")

    def matched(pattern: str) -> list[str]:
        return [info.url.removeprefix(base + "/") for info in storage.glob(storage.join(base, pattern))]

    assert matched("*.tar") == ["a.tar", "b.tar"]
    assert matched("[!a]*.tar") == ["b.tar"]
    assert matched("?.tar") == ["a.tar", "b.tar"]
    assert matched(".*.tar") == [".c.tar"]
    assert matched("[[]g].txt") == ["[g].txt"]
    assert matched("d*") == ["d", "d.x"]
    assert matched("*/a.tar") == ["d.x/a.tar", "d/a.tar"]
    assert matched("**/?.tar") == ["a.tar", "b.tar", "d.x/a.tar", "d/a.tar", "d/e/f.tar"]
    assert matched("d/**") == ["d/a.tar", "d/e", "d/e/f.tar"]
    assert matched("none/*") == matched("a.tar/*") == []
    if base == str(tmp_path):
        (tmp_path / "d" / "loop").symlink_to(tmp_path)
        assert matched("d/**/*.tar") == ["d/a.tar", "d/e/f.tar"]


def test_a_folder_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InfrastructureError, match="Permission denied"):
        storage.glob(str(tmp_path / "*" / "*.tar"))


def test_scratch_works_where_the_file_system_knows_no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.scratch_folder() as folder:
        (folder / "a").write_bytes(b"x")
        storage.remove_dead_scratch()
        assert (folder / "a").exists(), "nobody knows that it is dead"
    assert not folder.exists()


def test_scratch_that_is_just_being_made_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    flock = fcntl.flock
    looked: list[int] = []

    def beside_another(descriptor: int, how: int) -> None:
        if not looked:
            looked.append(1)
            looked.append(storage.remove_dead_scratch())
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", beside_another)
    with storage.scratch_folder() as folder:
        assert folder.exists()
        assert storage.remove_dead_scratch() == 0
    assert looked == [1, 0]
    assert not folder.exists()
