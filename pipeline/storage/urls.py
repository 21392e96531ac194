"""What a URL is: its canonical form, what is refused, and how credentials are kept out of texts."""

from __future__ import annotations

import dataclasses
import os
import re
from functools import lru_cache
from typing import Any

import fsspec

from patchsieve.pipeline.errors import UserError

# The same store under two schemes must not give one object two names.
_ALIASES = {"s3a": "s3", "gcs": "gs", "local": "file"}
_LOCAL = {"file"}
# Where the part before "@" names a container or a repository's revision, and is no credential.
_AT_IS_NO_USER = {"az", "abfs", "abfss", "adl", "hf"}
# Where "?" begins a query, which may be signed, and "#" a fragment. Elsewhere they belong to the name, but for what can
# only be meant as a query, as in "?versionId=".
_HAS_QUERY = {"http", "https", "webdav", "webhdfs"}
_HOSTS = {"http", "https", "ftp", "sftp", "ssh", "smb", "webdav", "webhdfs", "hdfs"}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# What wraps other stores, renders templates or runs commands: no place for data, and a way around refusals.
_REFUSED = {
    "arrow_hdfs",
    "async_wrapper",
    "asynclocal",
    "asyncwrapper",
    "blockcache",
    "cached",
    "dask",
    "data",
    "dir",
    "filecache",
    "generic",
    "git",
    "jlab",
    "jupyter",
    "libarchive",
    "pyscript",
    "reference",
    "simplecache",
    "tar",
    "zip",
}
_COMMAND = re.compile(r"^\s*(pipe|cmd|command|exec|popen|shell|sh|bash)\s*:", re.IGNORECASE)
_PATTERN_SIGN = re.compile(r"[*?\[]")
_QUERY_SIGN = re.compile(r"[?#]")
_SIGNED_TAIL = re.compile(r"\?[\w.%-]+=")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]*\]")
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://(.*)$", re.DOTALL)
# A URL in a URL, chained or in a query, is one of its own: each may have a password.
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?![A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"<>])*")
_USER_IN_TEXT = re.compile(r"[^\s/'\"<>@:]+:[^\s/'\"<>@]*@")
_QUERY_IN_TEXT = re.compile(r"\?[^\s'\"<>?=]*=[^\s'\"<>]*")


@lru_cache(maxsize=1)
def _known_protocols() -> frozenset[str]:
    # adlfs makes this one known only where it is installed; without it the user is told to install it.
    return frozenset(fsspec.available_protocols()) | {"abfss"}


def split_url(spec: str) -> tuple[str, str]:
    """(scheme in lower case, all that follows `://`); a plain path is `("file", path)`."""
    match = _URL.match(spec)
    if match is None:
        return "file", spec
    scheme = match[1].lower()
    return _ALIASES.get(scheme, scheme), match[2]


def is_local(url: str) -> bool:
    """Whether the URL names a path of this machine's file system (a mounted share too)."""
    return split_url(url)[0] in _LOCAL


def local_path(url: str) -> str:
    """The absolute path of a local URL; links are not followed: a shard keeps the name it was given."""
    plain = _URL.match(url) is None
    return os.path.abspath(os.path.expanduser(url) if plain else split_url(url)[1])


def _query_start(url: str) -> int:
    """Where the query or fragment of a URL begins, its length where it has none."""
    if is_local(url):
        return len(url)
    found = (_QUERY_SIGN if split_url(url)[0] in _HAS_QUERY else _SIGNED_TAIL).search(url)
    return len(url) if found is None else found.start()


def has_pattern(url: str) -> bool:
    """Whether the URL is a pattern for `glob`."""
    return pattern_start(url) >= 0


def pattern_start(url: str) -> int:
    """Where the first character of a pattern (`*`, `?`, `[`) stands, -1 if there is none.

    On a web server `?` begins the query, in which nothing is a pattern.
    """
    start = 0
    if not is_local(url):
        # Not in the host: brackets there hold an IPv6 address.
        start = url.find("/", url.find("://") + 3)
    found = _PATTERN_SIGN.search(url, start, _query_start(url)) if start >= 0 else None
    return -1 if found is None else found.start()


def refuse_unsafe(spec: str) -> None:
    """Raise UserError for what is no plain URL or path: commands, chained URLs, unknown schemes."""
    if not spec or "\0" in spec or "\n" in spec:
        raise UserError(f"not a path or URL: {spec!r}")
    if _COMMAND.match(spec):
        raise UserError(
            f"{redact(spec)} would run a command, which is refused; give the path or URL of the data"
        )
    scheme, _ = split_url(spec)
    if "::" in _IPV6.sub("", spec) and not (scheme in _LOCAL and os.path.lexists(local_path(spec))):
        way_out = "copy the file and give its own path or URL"
        if all(part.endswith(".tar") for part in spec.split("::")):
            way_out = "give each shard by itself"
        raise UserError(f"chained URLs are refused: {redact(spec)}; {way_out}")
    if scheme in _REFUSED:
        raise UserError(f"{scheme}:// is refused; copy the data to a store and give the URL there")
    if scheme not in _known_protocols():
        raise UserError(f"unknown scheme {scheme}:// in {redact(spec)}; for a local file give its path")


def absolute_url(spec: str | os.PathLike[str]) -> str:
    """The URL as it is opened: a local path made absolute, others as given. Refuses as `refuse_unsafe`."""
    text = os.fspath(spec)
    refuse_unsafe(text)
    return local_path(text) if is_local(text) else text


def canonical_url(spec: str | os.PathLike[str]) -> str:
    """The name of an object: absolute, without credentials and, on a web server, query and fragment; a local one is a
    plain path.

    Scheme and host are in lower case, `s3a` is `s3` and `gcs` is `gs`, a default port is left out. Refuses as
    `refuse_unsafe`.
    """
    url = absolute_url(spec)
    return url if is_local(url) else _canonical(*split_url(url))


def _canonical(scheme: str, rest: str) -> str:
    host, slash, path = rest.partition("/")
    if scheme not in _AT_IS_NO_USER:
        # Before the query is cut off: a password may hold "?" or "#".
        host = host.rpartition("@")[2]
    whole = f"{scheme}://{host}{slash}{path}"
    host, slash, path = whole[len(scheme) + 3 : _query_start(whole)].partition("/")
    if scheme in _HOSTS:
        host = host.lower()
    if scheme in _DEFAULT_PORTS:
        host = host.removesuffix(_DEFAULT_PORTS[scheme])
    if scheme == "memory":
        host, slash, path = "", "", f"{host}/{path}".strip("/")
    return f"{scheme}://{host}{slash}{path}".rstrip("/")


def without_secrets(spec: str) -> str:
    """A path, URL, pattern or list (`@URL`) as it is kept: without user and password and, on a web server, query."""
    sign, url = ("@", spec[1:]) if spec.startswith("@") else ("", spec)
    scheme, rest = split_url(url)
    if scheme in _LOCAL:
        return spec
    if scheme not in _AT_IS_NO_USER:
        # First: a password may hold "?" or "#".
        host, slash, path = rest.partition("/")
        rest = f"{host.rpartition('@')[2]}{slash}{path}"
    kept = f"{scheme}://{rest}"
    return f"{sign}{kept[: _query_start(kept)]}"


def kept_settings(config: Any) -> dict[str, Any]:
    """The settings of a dataclass by name as they are kept: texts `without_secrets`, tuples as lists."""

    def kept(value: Any) -> Any:
        if isinstance(value, tuple):
            return [kept(item) for item in value]
        return without_secrets(value) if isinstance(value, str) else value

    return {name: kept(value) for name, value in dataclasses.asdict(config).items()}


def redact(text: str) -> str:
    """The text with every URL in its canonical form and every query left out: safe to print and to store."""
    text = _URL_IN_TEXT.sub(lambda match: _canonical(*split_url(match[0])), text)
    return _QUERY_IN_TEXT.sub("", _USER_IN_TEXT.sub("", text))


def join(base: str, *names: str) -> str:
    """The URL of a file below a folder; UserError for a folder without a name, which is not the root."""
    if not base:
        raise UserError("the name of a folder is empty: give a path or URL")
    return "/".join([base.rstrip("/") if base.strip("/") else "", *names]) if names else base


def split_name(url: str) -> tuple[str, str]:
    """(URL of the folder, last name); the query of a URL stays with the name."""
    at = url.rfind("/", 0, _query_start(url))
    return url[:at] or "/", url[at + 1 :]
