"""Hostile inputs, made in code, and what each must come to. Those that tests of one room have are taken from there.

An entry's outcome is a pattern of what is said; nothing else may be raised than what `refused` names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from patchsieve.pipeline.errors import ContentError, DamagedFileError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.output.owner import owner_of
from patchsieve.pipeline.output.records import read_footer
from patchsieve.pipeline.output.settings import stored_config
from patchsieve.pipeline.pruned.format import PackedRecord
from patchsieve.pipeline.runs.config_file import settings_from_yaml
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.ranker.model.checkpoint import load_ranker
from tests.helpers.archives import END, archive, member, pax, read_all, shard_of
from tests.helpers.bad_samples import BAD
from tests.helpers.photos import encode
from tests.helpers.tables import record_of, write_table
from tests.pipeline.images.image_files import PHOTO
from tests.pipeline.images.test_costly_images import with_scans
from tests.pipeline.images.test_damaged_images import NO_IMAGES, resized_headers
from tests.pipeline.output.test_damage import RECORDS
from tests.pipeline.pruned.test_format import NO_RECORDS, ODD_VALUES, as_json
from tests.pipeline.shards.test_damaged_shards import DAMAGED
from tests.pipeline.shards.test_tar_stream import BAD_PAX

REFUSED = (ContentError, UserError)
"""What reading untrusted data may raise: the sample's fault, or the file's, in one line."""
DEEP = b"[" * 100_000 + b"]" * 100_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """One input: `come_to` reads it in a folder of its own and returns what it came to, or raises."""

    name: str
    come_to: Callable[[Path], str]
    outcome: str


def _shard(data: bytes) -> Callable[[Path], str]:
    """What a reader says of an archive: its faults, and how many samples are whole."""

    def come_to(folder: Path) -> str:
        samples, faults, _ = read_all(shard_of(folder / "a.tar", data))
        problems = [problem for sample in samples for problem in sample.problems.values()]
        whole = sum(not sample.problems for sample in samples)
        return "; ".join(
            [f"{whole} whole", *problems, *(f"{fault.stage}: {fault.reason}" for fault in faults)]
        )

    return come_to


def _image(data: bytes) -> Callable[[Path], str]:
    return lambda folder: f"pixels {list(decode_image(data).shape)}"


def _packed(data: bytes) -> Callable[[Path], str]:
    return lambda folder: str(PackedRecord.from_json(data))


def _file(name: str, data: bytes, read: Callable[[str], object]) -> Callable[[Path], str]:
    def come_to(folder: Path) -> str:
        (folder / name).write_bytes(data)
        return str(read(str(folder / name)))

    return come_to


def _table(spoil: Callable[[Path], None]) -> Callable[[Path], str]:
    def come_to(folder: Path) -> str:
        path = write_table(folder / "a.parquet", record_of(b"a"))
        spoil(path)
        try:
            read_footer(str(path)).record()
        except DamagedFileError:
            # Who reads rows says the same.
            return str(ScoreTables(str(path)).rows)
        return "read"

    return come_to


def _spec(text: str) -> Callable[[Path], str]:
    return lambda folder: str(expand_shards([text.replace("OUT", str(folder))]))


def _in(folder_of: Callable[[str], object], name: str, data: bytes) -> Callable[[Path], str]:
    """What the reader of a folder says of one file in it."""
    return _file(name, data, lambda path: folder_of(path.rpartition("/")[0]))


def _archives() -> Iterator[Entry]:
    for name, (data, _, _, words) in DAMAGED.items():
        yield Entry(f"shard: {name}", _shard(data), re.escape(words))
    for body in BAD_PAX:
        data = member("p", body, b"x") + member("a.jpg", b"1") + END
        yield Entry(f"shard: pax {body[:12]!r}", _shard(data), "archive: .*pax header at byte 0")
    good = member("good.jpg", b"1")
    odd = {
        "a NUL in a name": (pax({"path": b"n\0l.jpg"}) + member("x", b"1"), "1 whole; .*holds a NUL"),
        "a name of 5,000 characters": (pax({"path": "k" * 5000}) + member("x"), "1 whole; .*more than 4096"),
        "a name that is not UTF-8": (member(b"\xff\xfe.jpg", b"1"), "1 whole; .*not UTF-8"),
        "a name that climbs": (member("../../etc/passwd.jpg", b"1"), "2 whole"),
        "a name from the root": (member("/etc/passwd.jpg", b"1"), "2 whole"),
        "a name that a terminal obeys": (member(b"\x1b]0;x\x07.jpg", b"1"), "2 whole"),
        "a link out of the archive": (member("l.jpg", b"", b"2"), "1 whole; .*link"),
        "a hard link": (member("l.jpg", b"", b"1"), "1 whole; .*link"),
        "a device": (member("d.jpg", b"", b"3"), "1 whole"),
        "a key twice": (member("good.jpg", b"2") + member("b.jpg", b"1"), "whole.*duplicate|2 whole"),
        "2,000 members of one key": (
            b"".join(member(f"k.{number}", b"1") for number in range(2000)),
            "whole; .*more than 1024",
        ),
        "a pax size beyond the end": (pax({"size": str(2**62)}) + member("b.jpg", b"1"), "archive: "),
        "a size below zero": (_with_size(member("b.jpg", b"1"), b"\xff" * 12), "archive: "),
        "a sparse file": (pax({"GNU.sparse.major": "1"}) + member("s.jpg", b"1"), "1 whole; .*sparse"),
        "an empty name": (member("", b"1"), "1 whole"),
    }
    for name, (data, outcome) in odd.items():
        yield Entry(f"shard: {name}", _shard(good + data + END), outcome)
    yield Entry("shard: nothing in it", _shard(END), "^0 whole$")
    yield Entry("shard: a million zeros", _shard(bytes(2**20)), "^0 whole$")
    yield Entry("shard: a shard in a shard", _shard(archive([("a.tar", good + END)])), "^1 whole$")


def _with_size(block: bytes, size: bytes) -> bytes:
    from tests.helpers.archives import reseal

    return reseal(block[:124] + size + block[136:512]) + block[512:]


def _images() -> Iterator[Entry]:
    for number, (data, words) in enumerate(NO_IMAGES):
        yield Entry(f"image: none, {number}", _image(data), words)
    for name, data in resized_headers(30_000, 30_000).items():
        yield Entry(f"image: a {name} that claims 30,000 px a side", _image(data), "too large")
    scans = with_scans(encode(PHOTO, progressive=True), 5000)
    yield Entry("image: 5,000 empty scans", _image(scans), "JPEG with 50.. scans")
    for key, (members, stage, _, words) in BAD.items():
        if stage == "decode":
            yield Entry(f"image: {key}", _image(members[0][1]), words)
    zero = encode(PHOTO, "PNG").replace(struct.pack(">II", 131, 90), struct.pack(">II", 0, 90), 1)
    yield Entry("image: a width of 0", _image(zero), ".")


def _records() -> Iterator[Entry]:
    for number, (changes, words) in enumerate(ODD_VALUES):
        yield Entry(f"packed record: {number}", _packed(as_json(**changes)), words)
    for data in NO_RECORDS:
        yield Entry(f"packed record: {data[:8]!r}", _packed(data), "patches.json")
    for name, spoil in RECORDS.items():
        yield Entry(f"table: {name}", _table(spoil), "a.parquet")
    rows = {"identity": "0" * 64, "rows": {}}
    for name, data in {
        "deep": DEEP,
        "null": b"null",
        "not UTF-8": b"\xff{}",
        "an identity that is not its own": json.dumps(rows).encode(),
        "records elsewhere": b'{"identity": "x", "rows": {}, "records": "../.."}',
        "NaN": b'{"identity": NaN, "rows": NaN}',
    }.items():
        yield Entry(f"config.json: {name}", _in(stored_config, "config.json", data), "config.json is damaged")
    for name, data in {"deep": DEEP, "null": b"null", "text": b"hello", "not UTF-8": b"\xff"}.items():
        yield Entry(f"owner.json: {name}", _in(owner_of, "owner.json", data), "^{}$")


def _models() -> Iterator[Entry]:
    for name, data, words in (
        ("an empty file", b"", "cannot read weights"),
        ("text", b"hello" * 100, "cannot read weights"),
        ("a pickle that runs a command", b"cos\nsystem\n(S'true'\ntR.", "cannot read weights"),
        ("a header of 8 EB", b"\xff" * 8 + b"{}", "damaged .safetensors"),
        ("a header that is no JSON", struct.pack("<Q", 2) + b"{x", "damaged .safetensors"),
        ("no tensor", struct.pack("<Q", 2) + b"{}", "."),
    ):
        yield Entry(f"teacher: {name}", _file("t.safetensors", data, read_teacher), words)
    for name, data in {"deep": DEEP, "null": b"null", "of another job": b"{}", "not UTF-8": b"\xff"}.items():
        yield Entry(f"ranker: config.json {name}", _in(load_ranker, "config.json", data), "no ranker at")


def _texts() -> Iterator[Entry]:
    def settings(path: str) -> object:
        return settings_from_yaml(path, ScoreConfig)

    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (n, n, *[n - 1] * 9) for n in range(98, 106)
    )
    for name, data, words in (
        ("aliases within aliases", bomb, "without aliases"),
        ("an object to be made", b"shards: !!python/object/apply:os.system [true]\n", "."),
        ("deep", b"shards: " + DEEP, "more than 8 deep"),
        ("a list", b"- a\n", "."),
        ("not UTF-8", b"\xff\xfe\x00", "."),
        ("an unknown setting", b"colour: 3\n", "colour"),
        ("text for a number", b"seed: many\n", "seed"),
    ):
        yield Entry(f"settings: {name}", _file("c.yaml", data, settings), words)
    for text, words in (
        ("pipe:touch OUT/x", "would run a command"),
        ("zip://a.tar::OUT/b.zip", "chained URLs are refused"),
        ("OUT/a.tar\nOUT/b.tar", "not a path or URL"),
        ("OUT/a\0.tar", "not a path or URL"),
        ("", "not a path or URL"),
        ("gopher://host/a.tar", "unknown scheme"),
        ("OUT/{0..99999999999}.tar", "stands for more than 10000000 shards"),
        ("OUT/{a,b", "."),
        ("@OUT/list.txt", "."),
        ("OUT", "."),
    ):
        yield Entry(f"shards: {text[:30]!r}", _spec(text), words)


CATALOGUE = [entry for kind in (_archives, _images, _records, _models, _texts) for entry in kind()]
