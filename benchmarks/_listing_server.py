"""An S3 server that lists a bucket of many objects, a thousand a request, as real ones do, and gives out some."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
TABLE_BYTES = 1_000_000
_END = "\U0010ffff"
"""After every other character."""
_ENTRY = (
    '<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{tag}"</ETag>'
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def tag_of(number: int) -> str:
    """The etag of the object that is listed at this place of all keys, where it has no content."""
    return f"{number:032x}"


@functools.cache
def _tag_of_content(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@dataclasses.dataclass(kw_only=True)
class ListingServer:
    """`environment` leads s3:// to it, where every bucket holds the same keys; `asked`: "GET key" and so on."""

    environment: dict[str, str]
    asked: list[str] = dataclasses.field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.asked)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys: tuple[str, ...] = ()
    objects: Mapping[str, bytes] = {}
    counted: ListingServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if "list-type" not in query:
            self._give(unquote(address.path).split("/", 2)[2])
            return
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        first, last = (bisect.bisect_left(self.keys, prefix + end) for end in ("", _END))
        self.counted.asked.append(f"LIST {prefix}")
        at = int(query.get("continuation-token", [str(first)])[0])
        most = min(PAGE, int(query.get("max-keys", [str(PAGE)])[0]))
        entries: list[str] = []
        while at < last and len(entries) < most:
            key = self.keys[at]
            name, is_folder, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if is_folder:
                folder = f"{prefix}{name}{delimiter}"
                entries.append(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>")
                at = bisect.bisect_left(self.keys, folder + _END)
                continue
            content = self.objects.get(key)
            tag, size = (
                (tag_of(at), TABLE_BYTES) if content is None else (_tag_of_content(content), len(content))
            )
            entries.append(_ENTRY.format(key=key, tag=tag, size=size))
            at += 1
        more = at < last
        following = f"<NextContinuationToken>{at}</NextContinuationToken>" if more else ""
        body = (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{following}'
            f"<KeyCount>{len(entries)}</KeyCount>{''.join(entries)}</ListBucketResult>"
        ).encode()
        self._send(body, {"Content-Type": "application/xml"})

    def do_HEAD(self) -> None:
        self._give(unquote(urlsplit(self.path).path).split("/", 2)[2])

    def _give(self, key: str) -> None:
        self.counted.asked.append(f"{self.command} {key}")
        found = self.objects.get(key)
        if found is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        part = found[int(wanted[0]) : int(wanted[1]) + 1] if len(wanted) == 2 else found
        headers = {
            "ETag": f'"{_tag_of_content(found)}"',
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }
        self._send(part, headers, status=200 if part is found else 206)

    def _send(self, body: bytes, headers: Mapping[str, str], *, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line per request would be in the way."""


@contextlib.contextmanager
def serve_listing(
    keys: tuple[str, ...], objects: Mapping[str, bytes] | None = None
) -> Iterator[ListingServer]:
    """A server whose every bucket lists these keys, which are sorted, and gives out these objects, listed or not."""
    told = ListingServer(environment={})
    made = {"keys": keys, "objects": objects or {}, "counted": told}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), made))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
