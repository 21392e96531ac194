"""Streaming a shard: a tar archive becomes samples; faults of the data are told, faults of storage are raised."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import ContentError, DamagedArchiveError, InfrastructureError
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.shards.tar_stream import Member, TarStream, printable

MEMBER_LIMIT = 256 * 2**20
# A sample of more is no photo with its labels; its names alone would fill the memory.
MAX_MEMBERS = 1024
# What Linux allows for a path: longer names come from damage or malice, and a key goes into every row.
MAX_NAME = 4096
UNSORTED_BYTES = 2**30
"""What is held of a shard that is not sorted, whose samples are whole at its end alone."""
# What a member takes in memory beside its data and its name, in a sample of its own.
_MEMBER_BYTES = 2048
_SORTED = "`tar --sort=name -cf` writes the members of a sample side by side"
_REPEATED = "duplicate key: the shard had members of this key before"
_UNSORTED = f"{_REPEATED}; {_SORTED}, and --unsorted collects them"
_TOO_LARGE = (
    f"its samples take more than the {UNSORTED_BYTES / 2**30:g} GiB that --unsorted collects; {_SORTED}"
)
_DRAIN_CHUNK = 2**20


@dataclasses.dataclass
class Sample:
    """The members of one key, in their order in the archive.

    `fields`: extension as written -> bytes, of the fields that were to be kept and could be read. `members`:
    extension -> member name, of all. `problems`: extension -> why a field that was to be kept is not in `fields`.
    """

    key: str
    fields: dict[str, bytes]
    members: dict[str, str]
    problems: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something in the data that gives no row; stage is "archive", "sample", "decode" or "score"."""

    sample_key: str | None
    member: str | None
    stage: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Rejected(Fault):
    """The fault of members that make no sample, with all that could be read of them.

    `members`: (name, data) in the order of the archive, undecodable bytes of a name as surrogates.
    """

    members: tuple[tuple[str, bytes], ...] = dataclasses.field(default=(), repr=False)


def image_fields_of(image_fields: str) -> list[str]:
    """The extensions of `jpg;jpeg;png`, in lower case and in order of preference."""
    return [field.strip().lstrip(".").lower() for field in image_fields.split(";") if field.strip(" .")]


def pick_image(sample: Sample, image_fields: str) -> tuple[str, bytes] | None:
    """The sample's image as (field, bytes): the first of `jpg;jpeg;png` that it has, in any case of letters.

    Of two that differ only in case the earlier member counts. None if it has no such field; ContentError if it
    has one whose data could not be read (too large, a link, cut off).
    """
    for wanted in image_fields_of(image_fields):
        for field in sample.members:
            if field.lower() != wanted:
                continue
            if field in sample.problems:
                raise ContentError(f"{sample.members[field]}: {sample.problems[field]}")
            return field, sample.fields[field]
    return None


def split_key(name: str) -> tuple[str, str]:
    """(key, field) of a member name: its base name is cut at the first dot; its folder belongs to the key."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, printable(field)


def is_nameless(key: str) -> bool:
    """Whether a member of this key belongs to no sample, as `._photo.jpg` beside each `photo.jpg` of macOS."""
    return not key.rpartition("/")[2]


def samples_of(
    archive: TarStream,
    *,
    keep: Callable[[str, str], bool],
    member_limit: int = MEMBER_LIMIT,
    keep_rejected: bool = False,
    unsorted: bool = False,
) -> Iterator[Sample | Fault]:
    """The samples of an archive, or of a part of one that begins with a sample, and what makes none.

    `keep`: by key and field, whether a member's data are read in; the rest as `ShardReader` has it. Where the archive
    breaks off, a fault of stage "archive" comes last.
    """
    groups: deque[_MemberGroup] = deque()  # that may get more members: one, or all of an unsorted archive
    current: dict[str, _MemberGroup] = {}
    held = 0
    # Digests of 16 bytes instead of keys: a shard may have millions of long ones.
    seen: set[bytes] = set()
    try:
        for member in archive:
            key, field = split_key(member.name)
            if is_nameless(key):
                yield _nameless(member, archive, member_limit, keep_rejected=keep_rejected)
                continue
            group = current.get(key)
            if group is None or not group.takes(field):
                if not unsorted:
                    current.clear()
                    yield from _results(groups)
                digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
                group = _MemberGroup(
                    key,
                    member.name,
                    (_REPEATED if unsorted else _UNSORTED) if digest in seen else None,
                    keep_rejected=keep_rejected,
                )
                groups.append(group)
                current[key] = group
                seen.add(digest)
            problem = member.problem
            if problem is None and member.size > member_limit:
                problem = f"{member.size} bytes, more than the limit of {member_limit}"
            elif problem is None and group.bytes_kept + member.size > 4 * member_limit:
                problem = f"its sample has more than the limit of {4 * member_limit} bytes"
            kept = keep(key, field)
            group.matters |= kept
            wanted = (group.bad is None or keep_rejected) and kept
            held += _MEMBER_BYTES + len(member.name) + (member.size if wanted and problem is None else 0)
            if unsorted and held > UNSORTED_BYTES:
                groups.clear()  # any of them may lack members
                raise DamagedArchiveError(_TOO_LARGE)
            data = archive.read_data() if wanted and problem is None else None
            group.add(field, member.name, data, problem if wanted else None)
    except DamagedArchiveError as error:
        current.clear()
        yield from _results(groups)
        yield Fault(None, None, "archive", str(error))
        return
    current.clear()
    yield from _results(groups)


def _results(groups: deque[_MemberGroup]) -> Iterator[Sample | Fault]:
    while groups:
        group = groups.popleft()
        if group.matters:
            yield group.result()


def _nameless(member: Member, archive: TarStream, member_limit: int, *, keep_rejected: bool) -> Fault:
    name, reason = printable(member.name)[:MAX_NAME], "the name has nothing before its first dot"
    if not keep_rejected:
        return Fault(None, name, "sample", reason)
    readable = member.problem is None and member.size <= member_limit and "\0" not in member.name
    members = ((member.name, archive.read_data()),) if readable else ()
    return Rejected(None, name, "sample", reason, members)


class ShardReader:
    """Reads a shard once: a context manager; iterating yields a Sample or a Fault at a time, in shard order.

    After the last one `size`, `sha256` and `tag` tell what was read, to the end of the object, and `damaged`
    whether the archive broke off. A fault is told only of bytes that storage delivered exactly: a short read, a
    time-out, an object that changed meanwhile raise InfrastructureError, at the latest at the end.

    `keep_fields` says by extension whose data is kept (all by default). Memory is bounded by the largest sample:
    members above `member_limit` bytes, and what would take a sample above four times that, are not read in.
    `keep_rejected`: faults of stage "sample" come as `Rejected`, with the data of their members. `unsorted`: members of
    a sample may lie anywhere in the shard; they then come at its end, in the order of their first members, and a
    shard that would take more than about `UNSORTED_BYTES` of memory breaks off with a fault before any of them.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        keep_fields: Callable[[str], bool] | None = None,
        member_limit: int = MEMBER_LIMIT,
        keep_rejected: bool = False,
        unsorted: bool = False,
    ) -> None:
        self.shard, self.unsorted = shard, unsorted
        self.size = 0
        self.sha256 = ""
        self.tag = ""
        self.damaged = False
        self._keep = keep_fields if keep_fields is not None else lambda field: True
        self._limit = member_limit
        self._keep_rejected = keep_rejected
        self._stream: storage.ByteStream | None = None
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        try:
            self._stream = storage.open_stream(self.shard.url)
        except FileNotFoundError:
            raise InfrastructureError(f"{self.shard.name} is not there any more") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()

    def __iter__(self) -> Iterator[Sample | Fault]:
        assert self._stream is not None, "use it in a with statement"
        for item in samples_of(
            TarStream(self._read, self._stream.size),
            keep=lambda key, field: self._keep(field),
            member_limit=self._limit,
            keep_rejected=self._keep_rejected,
            unsorted=self.unsorted,
        ):
            self.damaged |= isinstance(item, Fault) and item.stage == "archive"
            yield item
        self._finish()

    @property
    def position(self) -> int:
        """Bytes of the archive that were read so far."""
        return 0 if self._stream is None else self._stream.position

    def _read(self, count: int) -> bytes:
        assert self._stream is not None
        data = self._stream.read(count)
        self._digest.update(data)
        return data

    def _finish(self) -> None:
        assert self._stream is not None
        while self._read(_DRAIN_CHUNK):
            pass
        self._stream.check_unchanged()
        self.size, self.tag = self._stream.position, self._stream.info.tag
        self.sha256 = self._digest.hexdigest()


class _MemberGroup:
    """Members of one key; `bad` says why they make no sample, `matters` whether that is worth telling."""

    def __init__(self, key: str, first_member: str, repeated: str | None, *, keep_rejected: bool) -> None:
        """`repeated`: what is wrong, where the key was there before."""
        self.bytes_kept = 0
        # More members of a sample that was given out, of fields that nobody asked for, cost nothing.
        self.matters = repeated is None
        self._rejected: list[tuple[str, bytes]] | None = [] if keep_rejected else None
        self.bad = repeated
        self._raw_key = key
        self._first_member = printable(first_member)[:MAX_NAME]
        self._sample = Sample(printable(key), {}, {})
        if self._sample.key != key:
            self.bad = "the member's name is not UTF-8"

    def takes(self, field: str) -> bool:
        """Whether such a member of its key belongs to this group: a field given twice begins another, a duplicate."""
        return field not in self._sample.members

    def add(self, field: str, member: str, data: bytes | None, problem: str | None) -> None:
        """Take in a member of this group."""
        sample = self._sample
        nul = "\0" in member  # which a pax header can give a name, and no other archive or file system
        if self._rejected is not None and data is not None and not nul and len(self._rejected) < MAX_MEMBERS:
            # The same bytes that the sample's fields hold, not a copy of them.
            self._rejected.append((member, data))
            self.bytes_kept += len(data) if self.bad is not None else 0
        if len(member) > MAX_NAME:
            self.bad = f"the name of a member has more than {MAX_NAME} characters"
        elif nul:
            self.bad = "the name of a member holds a NUL"
        elif self._rejected is not None and printable(member) != member:
            self.bad = "the name of a member is not UTF-8"
        elif len(sample.members) >= MAX_MEMBERS:
            self.bad = f"more than {MAX_MEMBERS} members"
        else:
            sample.members[field] = printable(member)
        if self.bad is not None:
            sample.fields.clear()
            return
        if data is not None:
            sample.fields[field] = data
            self.bytes_kept += len(data)
        if problem is not None:
            sample.problems[field] = problem

    def result(self) -> Sample | Fault:
        """The sample, or what is wrong with it."""
        if self.bad is None:
            return self._sample
        key = self._sample.key[:MAX_NAME] if self._sample.key == self._raw_key else None
        if self._rejected is None:
            return Fault(key, self._first_member, "sample", self.bad)
        return Rejected(key, self._first_member, "sample", self.bad, tuple(self._rejected))
