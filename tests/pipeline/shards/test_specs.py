"""From specs to shards: braces against a shell, names, ids, lists, what is refused, 100,000 of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import tracemalloc
from pathlib import Path

import fsspec
import pytest

from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.shards import specs as shard_specs
from patchsieve.pipeline.shards.specs import Shard, expand_shards, shard_id
from patchsieve.pipeline.storage import retry as storage_retry
from tests.helpers.servers import FileServer, S3Store, Trouble, serve_files


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retry, "FIRST_DELAY_S", 0.001)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return [str(folder / name) for name in names]


def urls(*specs: str, root: str | None = None) -> list[str]:
    return [shard.url for shard in expand_shards(specs, root=root)]


BRACES = [
    "a{000..012}.tar",
    "a{8..11}b{x,y}",
    "a{08..11}",
    "{9..3}",
    "{0..20..7}",
    "{20..0..7}",
    "{a,b{1..3},{c,{d,e}}}.tar",
    "{,x}y",
    "{a}{b,c}",
    "x{y",
    "x}y{z,",
    "{01..3}{a..b}{}",
    "plain",
]


@pytest.mark.parametrize("spec", [s for s in BRACES if s != "{01..3}{a..b}{}"])
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is the reference")
def test_braces_expand_as_in_bash(spec: str) -> None:
    told = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {spec}"], capture_output=True, text=True, check=True
    )
    assert list(shard_specs.expand_braces(spec)) == told.stdout.splitlines()


def test_only_numbers_and_lists_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_specs, "MAX_EXPANSION", 1000)
    assert list(shard_specs.expand_braces("{01..3}{a..b}{}")) == ["01{a..b}{}", "02{a..b}{}", "03{a..b}{}"]
    with pytest.raises(UserError, match="more than 1000 "):
        for _ in shard_specs.expand_braces("s{0..99999999}"):
            pass


def test_every_kind_of_spec(folder: Path) -> None:
    first, second, third = touch(folder, "d/a-0.tar", "d/a-1.tar", "d/b.tar")
    touch(folder, "d/notes.txt", "d/.hidden.tar.part", "d/inner/c.tar", "empty/x.txt")
    assert urls("d/a-1.tar") == [second]
    assert urls("d/a-{0..1}.tar", f"file://{third}") == [first, second, third]
    assert urls("d/a-?.tar") == urls("d/a-[01].tar") == [first, second]
    assert urls("d") == urls("d/") == urls("d/*.tar") == [first, second, third]
    assert urls("**/c.tar") == [str(folder / "d/inner/c.tar")]
    assert urls("{d/inner,d}") == [str(folder / "d/inner/c.tar"), first, second, third]
    (folder / "list.txt").write_text(f"\ufeff# comment\n\nd/b.tar\r\n  {first}\nd/a-{{1..1}}.tar\n")
    assert urls("@list.txt") == urls(f"@file://{folder}/list.txt") == [third, first, second]


def test_a_shard_knows_size_tag_name_and_id(folder: Path) -> None:
    (path,) = touch(folder, "d/a-0.tar")
    os.utime(path, ns=(1, 1234567890123456789))
    digest = hashlib.sha256(path.encode()).hexdigest()[:16]
    assert expand_shards(["d/../d/a-0.tar"]) == [Shard(path, path, f"a-0-{digest}", 9, "1234567890123456789")]
    below = expand_shards(["d"], root=str(folder))[0]
    assert (below.name, below.id) == ("d/a-0.tar", f"a-0-{hashlib.sha256(b'd/a-0.tar').hexdigest()[:16]}")
    with pytest.raises(UserError, match="is not below --root"):
        expand_shards(["d"], root=str(folder / "d/a"))


def test_same_name_in_two_folders_gives_two_ids(folder: Path) -> None:
    touch(folder, "x/a.tar", "y/a.tar")
    ids = [shard.id for shard in expand_shards(["x", "y"])]
    assert len(set(ids)) == 2
    with pytest.raises(UserError, match="two shards have the id a-"):
        expand_shards(["x/a.tar", "y", "x"])


def test_strange_file_names(folder: Path) -> None:
    names = [
        "a b.tar",
        "é漢.tar",
        "a#1.tar",
        "a?b=c.tar",
        "a*[x]{0..3}.tar",
        "100%.tar",
        "a::b.tar",
        "n" * 200 + ".tar",
    ]
    paths = touch(folder, *names)
    for name, path in zip(names, paths, strict=True):
        shard = expand_shards([name])[0]
        assert (shard.url, shard.name, shard.size) == (path, path, len(name.encode()))
        stem, _, digest = shard.id.rpartition("-")
        assert digest == hashlib.sha256(path.encode()).hexdigest()[:16]
        assert len(shard.id.encode()) < 150
        assert not set(stem) & set('*?[]{}#%:"<>|/\\')
    assert len(expand_shards(["."])) == len(names)
    assert shard_id("x/é漢 1.tar").startswith("é漢 1-")
    os.close(os.open(b"caf\xe9.tar", os.O_CREAT))
    with pytest.raises(UserError, match=r"not UTF-8, rename it: .*caf\\xe9.tar"):
        expand_shards(["."])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("none.tar", "no such shard: .*none.tar"),
        ("none-{0..9}.tar", "none-0.tar, .*none-1.tar, .*none-2.tar and 7 more"),
        ("*.none", r"nothing matches \*.none"),
        (
            "empty",
            r"no \*.tar directly in the folder (\S+); of photos in it, `patchsieve pack \1 --out SHARDS`",
        ),
        ("@none.txt", "cannot read .*none.txt"),
        ("pipe:cat a.tar", "would run a command"),
        ("PIPE: curl http://u:secret@h/a.tar?sig=secret", "would run a command"),
        ("simplecache::s3://b/a.tar", "chained"),
        ("zip://x::http://u:secret@h/a.zip", "chained"),
        ("reference://x", "refused"),
        ("nope://x/a.tar", "unknown scheme"),
        ("", "not a path"),
        ("a.tar\n", "not a path"),
        ("a.tar.gz", "compressed"),
        ("pruned", r"in the folder (\S+); it is an output of prune, whose shards are in \1/shards$"),
        ("file.tar/x.tar", "no such shard"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(folder: Path, spec: str, words: str) -> None:
    touch(folder, "a.tar.gz", "file.tar", "empty/readme", "pruned/shards/a.tar")
    with pytest.raises(UserError, match=words) as told:
        expand_shards([spec])
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_no_specs(folder: Path) -> None:
    with pytest.raises(UserError, match="no shards given"):
        expand_shards([])
    (folder / "list.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="no shards given"):
        expand_shards(["@list.txt"])
    (folder / "list.txt").write_bytes(b"caf\xe9.tar\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        expand_shards(["@list.txt"])
    (folder / "list.txt").write_text("pipe:true\n")
    with pytest.raises(UserError, match="would run a command"):
        expand_shards(["@list.txt"])
    (folder / "gone.tar").symlink_to("nowhere")
    with pytest.raises(UserError, match="link to nowhere"):
        expand_shards(["."])


def test_web_server() -> None:
    with serve_files() as server:
        names = ["/d/a-0.tar", "/d/a-1.tar", "/d/x.txt"]
        server.files.update({name: name.encode() for name in names})
        first, second = server.url(names[0]), server.url(names[1])
        assert urls(server.url("/d/a-{0..1}.tar")) == [first, second]
        assert urls(server.url("/d/")) == urls(server.url("/d/*.tar")) == [first, second]
        server.files["/list.txt"] = f"{second}\n".encode()
        assert urls("@" + server.url("/list.txt")) == [second]
        signed = expand_shards(
            [first.replace("//", "//user:secret@") + "?sig=secret#secret"], root=server.url("/")
        )[0]
        assert (signed.name, signed.size, len(signed.tag)) == ("d/a-0.tar", 10, 32)
        assert "secret" not in signed.name + signed.id
        with pytest.raises(UserError, match="two shards have the id"):
            expand_shards([first + "?v=1", first + "?v=2"])
        with pytest.raises(UserError, match="no such shard"):
            expand_shards([server.url("/d/a-2.tar")])
        _test_web_server_in_trouble(server, first)
    with pytest.raises(InfrastructureError, match=r"cannot read .*: ClientConnectorError"):
        expand_shards([first])


def _test_web_server_in_trouble(server: FileServer, url: str) -> None:
    path = url.removeprefix(server.url(""))
    busy, forbidden = Trouble("status", status=503), Trouble("status", status=403)
    server.head_trouble[path], server.troubles[path] = [busy, busy], [busy, busy]
    assert len(expand_shards([url])) == 1
    server.head_trouble[path], server.troubles[path] = [forbidden] * 9, [forbidden] * 9
    with pytest.raises(UserError, match=r"cannot read .*403"):
        expand_shards([url])
    # Refused at once: asking again does not help.
    assert len(server.troubles[path]) == 8
    server.head_trouble.clear()
    server.troubles.clear()
    server.lengths = False
    with pytest.raises(UserError, match="does not tell the length"):
        expand_shards([url])


def test_s3(s3: S3Store) -> None:
    store = fsspec.filesystem("s3")
    for number in range(30):
        store.pipe_file(f"{s3.bucket}/d/a-{number:03d}.tar", b"x" * number)
    found = expand_shards([s3.url("d/a-{000..029}.tar")])
    assert [shard.size for shard in found] == list(range(30))
    assert found == expand_shards([s3.url("d")]) == expand_shards([s3.url("d/*.tar")])
    # The tag of a listing is that of a look-up.
    assert expand_shards([s3.url("d/a-007.tar")]) == [found[7]]
    assert found[7].tag == hashlib.md5(b"x" * 7).hexdigest()
    assert expand_shards([s3.url("d/a-007.tar").replace("s3:", "s3a:")])[0].id == found[7].id
    with pytest.raises(UserError, match=r"no such shard: .*a-030\.tar"):
        expand_shards([s3.url("d/a-{000..030}.tar")])
    with pytest.raises(UserError, match="no such shard"):
        expand_shards(["s3://no-such-bucket/a.tar"])


def test_many_shards_take_little_time_and_memory(folder: Path) -> None:
    count = 4_000
    for number in range(count):
        os.close(os.open(f"shard-{number:06d}.tar", os.O_CREAT))
    tracemalloc.start()
    try:
        started = time.process_time()
        shards = expand_shards([f"shard-{{000000..{count - 1:06d}}}.tar"])
        kept, peak = tracemalloc.get_traced_memory()
        # A share of the promise, seconds for 100,000; tracemalloc costs most of this time.
        assert time.process_time() - started < 10
    finally:
        tracemalloc.stop()
    assert len(shards) == count
    # 100,000 of them then stay below a quarter of 500 MB.
    assert kept / count < 1000
    assert peak / count < 1250


def test_a_folder_and_a_pattern_find_the_same(folder: Path) -> None:
    touch(folder, "in/0.tar", "in/._0.tar", "in/.hidden.tar", "in/1.tar", "in/x.tar/inside.txt")
    expected = [str(folder / "in" / name) for name in ("0.tar", "1.tar")]
    assert urls("in") == urls("in/*.tar") == expected
    assert urls("in/.hidden.tar") == [str(folder / "in/.hidden.tar")]
    with pytest.raises(UserError, match="nothing matches"):
        urls("in/x*.tar")


def test_shards_joined_by_colons_are_to_be_given_one_by_one() -> None:
    with pytest.raises(UserError, match=r"give each shard by itself"):
        expand_shards(["s3://b/a.tar::s3://b/b.tar"])
