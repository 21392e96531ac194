"""An S3 server that lists a bucket of many objects, a thousand per request, as real ones do, and gives out a few."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
TABLE_BYTES = 1_000_000
_ENTRY = (
    '<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{tag}"</ETag>'
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def tag_of(number: int) -> str:
    """The etag of the object that is listed at this place of all keys."""
    return f"{number:032x}"


@dataclasses.dataclass(kw_only=True)
class ListingServer:
    """`environment` leads s3:// to it, where every bucket holds the same keys; `requests` counts."""

    environment: dict[str, str]
    requests: int = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys: tuple[str, ...] = ()
    objects: Mapping[str, bytes] = {}
    counted: ListingServer

    def do_GET(self) -> None:
        self.counted.requests += 1
        address = urlsplit(self.path)
        query = parse_qs(address.query)
        if "list-type" not in query:
            self._give(unquote(address.path).split("/", 2)[2])
            return
        prefix = query.get("prefix", [""])[0]
        first, last = (bisect.bisect_left(self.keys, prefix + end) for end in ("", "\U0010ffff"))
        start = int(query.get("continuation-token", [str(first)])[0])
        stop = min(start + PAGE, last)
        entries = "".join(
            _ENTRY.format(key=self.keys[number], tag=tag_of(number), size=TABLE_BYTES)
            for number in range(start, stop)
        )
        more = stop < last
        following = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
        body = (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{following}'
            f"<KeyCount>{stop - start}</KeyCount>{entries}</ListBucketResult>"
        ).encode()
        self._send(body, {"Content-Type": "application/xml"})

    def do_HEAD(self) -> None:
        self.counted.requests += 1
        self._give(unquote(urlsplit(self.path).path).split("/", 2)[2])

    def _give(self, key: str) -> None:
        found = self.objects.get(key)
        if found is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        part = found[int(wanted[0]) : int(wanted[1]) + 1] if len(wanted) == 2 else found
        headers = {
            "ETag": f'"{hashlib.md5(found).hexdigest()}"',
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
    """A server whose every bucket lists these keys, in order, and holds these objects, which are not listed."""
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
