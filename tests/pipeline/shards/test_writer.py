"""Tars of pruned shards: read alike by tarfile, tar, webdataset and this project; the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from patchsieve.pipeline.shards.writer import PrunedTar
from tests.helpers.archives import read_all, shard_of

MEMBERS = [
    ("a/one.patches.jpg", b"\xff\xd8" * 300),
    ("a/one.patches.json", b"{}"),
    ("a/one.cls", b""),
    ("zwei-\u00e4\u6f22.txt", b"x" * 512),
    (f"{'long/' * 60}three.cls", b"7"),
]


def written(path: Path) -> Path:
    with PrunedTar(path) as tar:
        for name, data in MEMBERS:
            tar.add(name, data)
    assert tar.size == path.stat().st_size
    assert tar.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    return path


def test_tarfile_reads_it(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path / "x.tar")) as archive:
        infos = archive.getmembers()
        found = [(info.name, (archive.extractfile(info) or io.BytesIO()).read()) for info in infos]
    assert found == MEMBERS
    assert {(i.mode, i.mtime, i.uid, i.gid, i.uname, i.gname, i.type) for i in infos} == {
        (0o644, 0, 0, 0, "", "", tarfile.REGTYPE)
    }


def test_tar_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar")
    (tmp_path / "out").mkdir()
    done = subprocess.run(["tar", "-xf", path, "-C", tmp_path / "out"], capture_output=True, check=True)
    assert done.stderr == b""
    assert [(name, (tmp_path / "out" / name).read_bytes()) for name, _ in MEMBERS] == MEMBERS


# It leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tar")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["a/one", "zwei-\u00e4\u6f22", f"{'long/' * 60}three"]
    assert samples[0]["patches.jpg"] == MEMBERS[0][1]


def test_our_reader_finds_it_sound(tmp_path: Path) -> None:
    samples, faults, reader = read_all(shard_of(tmp_path / "y.tar", written(tmp_path / "x.tar").read_bytes()))
    assert (faults, reader.damaged) == ([], False)
    assert [data for sample in samples for data in sample.fields.values()] == [data for _, data in MEMBERS]


def test_it_ends_with_two_blocks_of_zeros(tmp_path: Path) -> None:
    data = written(tmp_path / "x.tar").read_bytes()
    assert data[-1024:] == bytes(1024)
    assert data[-1536:-1024].startswith(b"7")


def test_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    one = written(tmp_path / "x.tar").read_bytes()
    assert one == written(tmp_path / "y.tar").read_bytes()
    # Pinned: reruns, on any machine, must find shards that they can compare.
    assert hashlib.sha256(one).hexdigest()[:16] == "18332616c8ccc98d"


def test_an_empty_shard_is_an_end_marker(tmp_path: Path) -> None:
    with PrunedTar(tmp_path / "x.tar"):
        pass
    assert (tmp_path / "x.tar").read_bytes() == bytes(1024)


def test_a_failure_leaves_no_sound_archive(tmp_path: Path) -> None:
    def fail() -> None:
        with PrunedTar(tmp_path / "x.tar") as tar:
            tar.add(*MEMBERS[0])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert read_all(shard_of(tmp_path / "y.tar", (tmp_path / "x.tar").read_bytes()))[2].damaged


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with PrunedTar(tmp_path / "x.tar") as tar, pytest.raises(ValueError, match="no name of a member"):
        tar.add(name, b"")
