"""From what a user writes (path, glob, brace range, folder, @list) to the shards of a run."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import AccessError, InfrastructureError, UserError
from patchsieve.pipeline.storage import ObjectInfo

T = TypeVar("T")

SHARD_SUFFIX = ".tar"


def is_shard_name(name: str) -> bool:
    """Whether a file in a folder is a shard; as for a pattern, one whose name begins with a dot is none."""
    return name.endswith(SHARD_SUFFIX) and not name.startswith(".")


# A list of 10 million names has a gigabyte: beyond it is no list of shards.
LIST_LIMIT = 2**30
MAX_EXPANSION = 10_000_000
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".zip")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?")
# No part of a file name on every store, or special to shells and patterns; the hash keeps ids apart.
_UNSAFE_IN_ID = re.compile(r"[\x00-\x1f\x7f\\/*?\[\]{}#%:\"'<>|]")
_LONGEST_STEM_BYTES = 120
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shard:
    """One archive of a run: `url` as opened, `name` and `id` as tables know it, size and tag as storage tells."""

    url: str
    name: str
    id: str
    size: int | None
    tag: str


def shard_id(name: str) -> str:
    """File stem, "-", the first 16 hex digits of the SHA-256 of the name: a file name on every store.

    In the stem, characters that some store, shell or pattern reads as special become "_", and it is cut at 120
    bytes.
    """
    stem = name.rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    stem = _UNSAFE_IN_ID.sub("_", stem).encode()[:_LONGEST_STEM_BYTES].decode(errors="ignore")
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def expand_shards(specs: Sequence[str], *, root: str | None = None) -> list[Shard]:
    """The shards that the specs name, in their order; those of a pattern or folder sorted by URL.

    A spec is a path or URL, a pattern, a brace range or list (`{000..127}`, `{a,b}`, nested), a folder (the
    `*.tar` directly below it), or `@list.txt` (a spec per line, as on the command line; `#` begins a comment
    line). A local path that exists is taken as it is written, whatever characters it holds. With `root`, names
    are paths below it.

    Raises UserError for a spec that finds nothing or cannot be read, for shards outside `root`, and for two
    shards of one id, which the same shard given twice has.
    """
    specs = [specs] if isinstance(specs, str) else specs
    entries = [entry for spec in specs for entry in _entries(spec, in_list=False)]
    shards = listed_shards(_objects(entries), root=root)
    if not shards:
        raise UserError("no shards given")
    return shards


def listed_shards(files: Iterable[ObjectInfo], *, root: str | None = None) -> list[Shard]:
    """The shards that files of a listing are, in their order; nothing is looked up. Errors as `expand_shards`."""
    base = None if root is None else storage.canonical_url(root).rstrip("/") + "/"
    shards = [_shard(info, base) for info in files]
    by_id: dict[str, Shard] = {}
    for shard in shards:
        other = by_id.setdefault(shard.id, shard)
        if other is not shard:
            raise UserError(
                f"two shards have the id {shard.id}: {storage.redact(other.url)} and {storage.redact(shard.url)}; "
                "give each once, and keep them apart by more than credentials or query"
            )
    return shards


def expand_braces(spec: str) -> Iterator[str]:
    """The strings that brace ranges and lists stand for, as in a shell: numbers keep their leading zeros.

    Braces that hold neither `,` nor a range stay as they are. Raises UserError beyond 10 million strings.
    """
    # Counted first: what is not to be expanded takes no time and no memory.
    if _count(spec) > MAX_EXPANSION:
        raise UserError(f"{storage.redact(spec)} stands for more than {MAX_EXPANSION} shards")
    yield from _expand(spec)


def _count(text: str) -> int:
    """How many strings `_expand` gives."""
    start, end = _first_group(text)
    if start < 0:
        return 1
    inner, tail = text[start + 1 : end], text[end + 1 :]
    return (len(_range(inner)) if _RANGE.fullmatch(inner) else sum(map(_count, _split_list(inner)))) * _count(
        tail
    )


def _expand(text: str) -> Iterator[str]:
    start, end = _first_group(text)
    if start < 0:
        yield text
        return
    head, inner, tail = text[:start], text[start + 1 : end], text[end + 1 :]
    for middle in _alternatives(inner):
        for rest in _expand(tail):
            yield head + middle + rest


def _first_group(text: str) -> tuple[int, int]:
    """Where the first pair of braces that stands for something opens and closes, (-1, -1) if none does."""
    start = text.find("{")
    while start >= 0:
        depth = 0
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                inner = text[start + 1 : end]
                if _RANGE.fullmatch(inner) or len(_split_list(inner)) > 1:
                    return start, end
                break
        start = text.find("{", start + 1)
    return -1, -1


def _alternatives(inner: str) -> Iterator[str]:
    bounds = _RANGE.fullmatch(inner)
    if bounds is None:
        for part in _split_list(inner):
            yield from _expand(part)
        return
    first, last = bounds[1], bounds[2]
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    for number in _range(inner):
        yield str(number).zfill(width)


def _range(inner: str) -> range:
    """The numbers that `first..last` or `first..last..step` stands for."""
    low, high, stride = (int(number) for number in (*inner.split(".."), "1")[:3])
    stride = stride or 1
    return range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)


def _split_list(inner: str) -> list[str]:
    """The parts between the commas that are in no inner braces."""
    parts, depth = [""], 0
    for character in inner:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _entries(spec: str, *, in_list: bool) -> Iterator[str | list[ObjectInfo]]:
    """URLs to look up, and what patterns have matched."""
    if spec.startswith("@") and not in_list:
        yield from _list_entries(spec[1:])
        return
    storage.refuse_unsafe(spec)
    if storage.is_local(spec) and os.path.lexists(storage.absolute_url(spec)):
        yield storage.absolute_url(spec)
        return
    for text in expand_braces(spec):
        url = storage.absolute_url(text)
        if not storage.has_pattern(url):
            yield url
            continue
        matched = _or_refuse(partial(storage.glob, url), url)
        if url.endswith(SHARD_SUFFIX):
            matched = [info for info in matched if not info.is_folder]  # whatever a folder is called
        if not matched:
            raise UserError(f"nothing matches {storage.redact(text)}")
        yield matched


def _list_entries(spec: str) -> Iterator[str | list[ObjectInfo]]:
    url = storage.absolute_url(spec)
    try:
        text = _or_refuse(lambda: storage.read_bytes(url, limit=LIST_LIMIT), url).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"the list {storage.redact(spec)} is not UTF-8 text") from None
    for line in text.split("\n"):  # not splitlines: a name may hold its other separators
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield from _entries(entry, in_list=True)


def _objects(entries: list[str | list[ObjectInfo]]) -> Iterator[ObjectInfo]:
    """The files behind the entries; all plain URLs are looked up together."""
    urls = [entry for entry in entries if isinstance(entry, str)]
    looked_up = _or_refuse(lambda: storage.stat_many(urls), "the shards")
    missing = [url for url, info in zip(urls, looked_up, strict=True) if info is None]
    if missing:
        shown = ", ".join(storage.redact(url) for url in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(f"no such shard: {shown}{more}")
    following = iter(looked_up)
    for entry in entries:
        for info in [next(following)] if isinstance(entry, str) else entry:
            assert info is not None
            yield from _files(info)


def _files(info: ObjectInfo) -> Iterator[ObjectInfo]:
    if not info.is_folder:
        yield info
        return
    listed = _or_refuse(lambda: storage.list_folder(info.url, suffix=SHARD_SUFFIX), info.url)
    found = [file for file in listed if is_shard_name(storage.split_name(file.url)[1])]
    if not found:
        where, below = storage.redact(info.url), storage.join(info.url, "shards")
        instead = (
            f"it is an output of prune, whose shards are in {storage.redact(below)}"
            if _or_refuse(lambda: storage.list_folder(below, suffix=SHARD_SUFFIX), info.url)
            else f"of photos in it, `patchsieve pack {where} --out SHARDS` makes shards"
        )
        raise UserError(f"no *{SHARD_SUFFIX} directly in the folder {where}; {instead}")
    yield from found


def _or_refuse(call: Callable[[], T], what: str) -> T:
    """The result of the call; what is not there or forbidden is the user's, a store that does not answer is not."""
    try:
        return call()
    except (FileNotFoundError, InfrastructureError) as error:
        waiting_helps = isinstance(error, InfrastructureError) and not isinstance(error, AccessError)
        kind = InfrastructureError if waiting_helps else UserError
        raise kind(f"cannot read {storage.redact(what)}: {storage.describe_error(error)}") from None


def _shard(info: ObjectInfo, base: str | None) -> Shard:
    name = storage.canonical_url(info.url)
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise UserError(f"the shard's file name is not UTF-8, rename it: {shown}") from None
    if name.lower().endswith(_COMPRESSED):
        raise UserError(f"{name} is a compressed archive, which is not read; unpack it to a plain .tar")
    if info.size is None:
        raise UserError(
            f"{name}: the server does not tell the length, so a shard cut short could not be told from a whole one; "
            "copy it to another store"
        )
    if base is not None:
        if not name.startswith(base):
            raise UserError(f"{name} is not below --root {base}")
        name = name.removeprefix(base)
    return Shard(info.url, name, shard_id(name), info.size, info.tag)
