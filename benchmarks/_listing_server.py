"""An S3 server that knows one thing: to list a bucket of many objects, a thousand per request, as real ones do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
_ENTRY = (
    '<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{number:032x}"</ETag>'
    "<Size>1000000</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys: tuple[str, ...] = ()

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        page = self.keys[start : start + PAGE]
        entries = "".join(
            _ENTRY.format(key=key, number=number) for number, key in enumerate(page, start=start)
        )
        more = start + PAGE < len(self.keys)
        following = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        body = (
            f'<?xml version="1.0"?><ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{following}'
            f"<KeyCount>{len(page)}</KeyCount>{entries}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)  # nothing but folders is asked for
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """A line per request would be in the way."""


@contextlib.contextmanager
def serve_listing(keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """A server whose every bucket holds these keys; yields the environment that leads s3:// to it."""
    handler = type("Handler", (_Handler,), {"keys": keys})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
