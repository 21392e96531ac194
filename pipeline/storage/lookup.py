"""What is there: objects, folders and patterns on any store, never from a cache."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import os
import re
import stat as python_stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import fsspec

from patchsieve.pipeline.errors import (
    AccessError,
    InfrastructureError,
    PatchsieveError,
    UserError,
    first_line,
)
from patchsieve.pipeline.storage.retry import describe_error, with_retry
from patchsieve.pipeline.storage.urls import (
    canonical_url,
    is_local,
    join,
    local_path,
    pattern_start,
    redact,
    refuse_unsafe,
    split_name,
    split_url,
)
from patchsieve.pipeline.storage.web import client_options
from patchsieve.pipeline.threads import map_threads

_HTTP = {"http", "https"}
# fsspec would take all of "key:secret@bucket" for the bucket.
_NO_USERS = {"s3", "gs"}
# From so many objects of one folder on, listing it (a request per thousand) is cheaper than asking for each.
_LIST_FROM = 64
# What stores call the mark of an object's version, the most exact first.
_TAG_FIELDS = ("ETag", "etag", "blob_id", "content_md5", "md5Hash", "LastModified", "Last-Modified")
_CHANGE_FIELDS = ("LastModified", "last_modified", "mtime", "modified")
_TIME_FIELDS = ("last_modified", "mtime", "modified", "updated", "modify", "created", "created_at")


@dataclasses.dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as its store reports it.

    `tag` is the etag, else the time of change (nanoseconds on a local file system), "" where the store tells
    neither. `size` in bytes, None for folders and where the store does not tell it. `modified`: seconds since 1970
    by the store's clock, None where it does not tell; no part of what an object is compared by, since stores round
    it in one answer and not in another.
    """

    url: str
    size: int | None
    tag: str
    is_folder: bool = False
    modified: float | None = dataclasses.field(default=None, compare=False)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL that is not local, and the path in it; UserError if it is not usable."""
    refuse_unsafe(url)
    scheme, rest = split_url(url)
    if scheme in _NO_USERS and "@" in rest.partition("/")[0]:
        raise UserError(
            f"{canonical_url(url)}: {scheme}:// takes no credentials in the URL; set the environment's"
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
        options = kind._get_kwargs_from_urls(url)
        if scheme in _HTTP:
            options["client_kwargs"] = client_options(kind.protocol)
        store = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot use {scheme}:// here: {redact(first_line(error))}") from None
    except Exception as error:  # some connect as they are made, and fail in any way
        raise InfrastructureError(f"reaching {canonical_url(url)}: {describe_error(error)}") from None
    if scheme == "s3":
        # Its own five attempts, of five each by botocore below, would come on top of ours.
        store.retries = 1
    return store, kind._strip_protocol(url)


def is_http(url: str) -> bool:
    """Whether the store is a web server: no listings, sizes only from headers."""
    return split_url(url)[0] in _HTTP


def stat(url: str) -> ObjectInfo:
    """What the store says of one object or folder now.

    Raises FileNotFoundError where there is none, InfrastructureError for any other fault.
    """
    if is_local(url):
        return with_retry(lambda: _local_info(url, os.stat(local_path(url))), what=f"looking up {url}")
    if is_http(url) and url.endswith("/"):
        return ObjectInfo(url, None, "", is_folder=True)
    store, path = filesystem(url)

    def look_up() -> ObjectInfo:
        store.invalidate_cache()
        return _remote_info(url, store.info(path))

    return with_retry(look_up, what=f"looking up {canonical_url(url)}")


def exists(url: str) -> bool:
    """Whether there is an object or folder; errors as in `stat`."""
    try:
        stat(url)
    except FileNotFoundError:
        return False
    return True


def _local_info(url: str, status: os.stat_result) -> ObjectInfo:
    if python_stat.S_ISDIR(status.st_mode):
        return ObjectInfo(url, None, "", is_folder=True)
    if not python_stat.S_ISREG(status.st_mode):
        # Reading a pipe or a device could wait for ever, and it has no length.
        raise AccessError(f"{url} is neither a file nor a folder")
    return ObjectInfo(url, status.st_size, str(status.st_mtime_ns), modified=status.st_mtime)


def _remote_info(url: str, entry: Mapping[str, Any]) -> ObjectInfo:
    if entry.get("type") == "directory":
        return ObjectInfo(url, None, "", is_folder=True)
    size = entry.get("size")
    return ObjectInfo(url, None if size is None else int(size), _tag(entry), modified=_modified(entry))


def _tag(entry: Mapping[str, Any]) -> str:
    for field in (*_TAG_FIELDS, *_TIME_FIELDS):
        value = entry.get(field)
        if value:
            return str(value).strip().removeprefix("W/").strip('"')
    return ""


def _modified(entry: Mapping[str, Any]) -> float | None:
    for field in _CHANGE_FIELDS:
        value = entry.get(field)
        if isinstance(value, datetime.datetime):
            # Stores tell the world's time, some without saying so.
            return value.replace(tzinfo=value.tzinfo or datetime.UTC).timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


Unlisted = Callable[[str, PatchsieveError], None]
"""Is told of a folder that cannot be listed, or of a link to nowhere in one, and why."""


def _raise(url: str, error: PatchsieveError) -> None:
    raise error


def list_folder(url: str, *, suffix: str = "", folders: bool = False) -> list[ObjectInfo]:
    """The files directly below a folder whose names end in `suffix`, sorted by URL; its folders if asked.

    A folder that does not exist is empty: object stores know no folders. Raises InfrastructureError.
    """
    found = _list(url, lambda name: name.endswith(suffix))
    return [info for info in found if folders or not info.is_folder]


def list_below(url: str) -> list[ObjectInfo]:
    """Every file in a folder and in the folders below it, linked ones too, in no order that matters.

    Names that begin with a dot are left out. Raises UserError for a link to a folder that is listed already, since
    links among links could go on for ever or double at every step, and InfrastructureError.
    """
    found: list[ObjectInfo] = []
    listed: dict[str, str] = {}
    folders = [url]
    for folder in folders:  # which grows meanwhile: folders may lie deeper than calls
        place = os.path.realpath(local_path(folder)) if is_local(folder) else folder
        if place in listed:
            raise UserError(f"{folder} and {listed[place]} are one folder, by a link: remove the link")
        listed[place] = folder
        for info in _list(folder, _matcher("*")):
            if info.is_folder:
                folders.append(info.url)
            else:
                found.append(info)
    return found


def _list(url: str, wanted: Callable[[str], bool], unlisted: Unlisted = _raise) -> list[ObjectInfo]:
    """What lies directly below a folder and has a name that is wanted, sorted by URL."""
    try:
        return sorted(_listed(url, wanted, unlisted), key=lambda info: info.url)
    except PatchsieveError as error:
        unlisted(url, error)
        return []


def _listed(url: str, wanted: Callable[[str], bool], unlisted: Unlisted) -> list[ObjectInfo]:
    what = f"listing {canonical_url(url)}"
    if is_local(url):
        return with_retry(lambda: _list_local(url, wanted, unlisted), what=what)
    store, path = filesystem(url)

    def read_listing() -> list[ObjectInfo]:
        store.invalidate_cache()
        listed = store.ls(join(path, "") if is_http(url) else path, detail=True)
        return _from_listing(url, path, listed, wanted)

    try:
        found = with_retry(read_listing, what=what)
    except FileNotFoundError:
        return []
    if is_http(url):
        # A web page tells no sizes; what vanished meanwhile is left out.
        looked_up = stat_many([info.url for info in found if not info.is_folder])
        found = [info for info in found if info.is_folder] + [info for info in looked_up if info is not None]
    return found


def _list_local(url: str, wanted: Callable[[str], bool], unlisted: Unlisted) -> list[ObjectInfo]:
    found = []
    try:
        with os.scandir(local_path(url)) as entries:
            for entry in entries:
                if not wanted(entry.name):
                    continue
                try:
                    found.append(_local_info(join(url, entry.name), entry.stat()))
                except FileNotFoundError:
                    if entry.is_symlink():
                        unlisted(entry.path, AccessError(f"{entry.path} is a link to nowhere"))
                except InfrastructureError:
                    continue  # a socket or a pipe that lies beside the files
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def _from_listing(
    url: str, path: str, entries: Iterable[Mapping[str, Any]], wanted: Callable[[str], bool]
) -> list[ObjectInfo]:
    found = []
    for entry in entries:
        full = str(entry["name"]).rstrip("/")
        name = full.rpartition("/")[2]
        # Some stores list the folder itself, and a web page links to more than its folder.
        if is_http(url):
            listed = full == join(url, name) and "?" not in name and "#" not in name
        else:
            listed = full.strip("/") != path.strip("/")
        if listed and wanted(name):
            found.append(_remote_info(join(url, name), entry))
    return found


def glob(pattern: str, *, unlisted: Unlisted = _raise) -> list[ObjectInfo]:
    """Files and folders that match a pattern of `*`, `?`, `[...]` and `**`, sorted by URL.

    As in a shell, a name that begins with a dot is matched only by a pattern that does; `**` enters no linked
    folder. On a web server `?` begins the query. A folder that cannot be listed raises InfrastructureError or
    UserError, or goes to `unlisted` and is left out (the globs of Python and of fsspec do so without a word).
    """
    if is_local(pattern):
        pattern = local_path(pattern)
    cut = pattern.rfind("/", 0, pattern_start(pattern))
    parts = pattern[cut + 1 :].split("/")
    found = [ObjectInfo(pattern[:cut] or "/", None, "", is_folder=True)]
    for number, part in enumerate(parts):
        if part == "**":
            found = [below for folder in found for below in _folders_below(folder, unlisted)]
            if number < len(parts) - 1:
                continue
        matches = _matcher(part)
        found = [
            info for folder in found if folder.is_folder for info in _list(folder.url, matches, unlisted)
        ]
    return sorted(found, key=lambda info: info.url)


def _matcher(part: str) -> Callable[[str], bool]:
    matches = re.compile(fnmatch.translate(part)).match
    return lambda name: (not name.startswith(".") or part.startswith(".")) and matches(name) is not None


def _folders_below(folder: ObjectInfo, unlisted: Unlisted) -> list[ObjectInfo]:
    found = [folder]
    for above in found:  # which grows meanwhile
        for info in _list(above.url, _matcher("*"), unlisted):
            if info.is_folder and not (is_local(info.url) and os.path.islink(local_path(info.url))):
                found.append(info)
    return found


def stat_many(urls: Sequence[str]) -> list[ObjectInfo | None]:
    """`stat` for many URLs, in their order; None for what is not there. Raises InfrastructureError.

    100,000 local files or objects of one bucket folder take seconds: what has many siblings is found by
    listing their folder once, the rest is looked up on threads.
    """
    siblings: dict[str, list[str]] = {}
    for url in urls:
        siblings.setdefault(split_name(url)[0], []).append(url)
    found: dict[str, ObjectInfo | None] = {}
    single: list[str] = []
    for folder, members in siblings.items():
        if len(members) < _LIST_FROM or is_local(folder) or is_http(folder):
            single += members
        else:
            listed = {info.url: info for info in list_folder(folder, folders=True)}
            found.update((url, listed.get(url)) for url in members)
    if all(is_local(url) for url in single):
        # A local look-up takes microseconds, less than handing it to a thread.
        found.update((url, _stat_or_none(url)) for url in single)
    else:
        found.update(zip(single, map_threads(_stat_or_none, single), strict=True))
    return [found[url] for url in urls]


def _stat_or_none(url: str) -> ObjectInfo | None:
    try:
        return stat(url)
    except FileNotFoundError:
        return None
