"""Small servers on this machine: files over HTTP that misbehave on request, and an S3 store (moto)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Trouble:
    """What one answer does instead of giving the file.

    `cut` ends the connection after `after` bytes of the body, `reset` resets it there, `stall` says nothing more
    until the server closes, `status` answers with that status and no body. `slow`, for an S3 store: the whole body,
    in small pieces.
    """

    kind: str
    after: int = 0
    status: int = 503


@dataclass
class FileServer:
    """Files by path; a GET takes the next trouble of its path's list, and serves the file when there is none.

    `head_trouble` does the same for HEAD (statuses only). `redirects`: paths to places. `asked` keeps (method, path,
    Range header) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    head_trouble: dict[str, list[Trouble]] = field(default_factory=dict)
    forever: dict[str, Trouble] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    lengths: bool = True
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def next_trouble(self, method: str, path: str) -> Trouble | None:
        waiting = (self.head_trouble if method == "HEAD" else self.troubles).get(path, [])
        if waiting:
            return waiting.pop(0)
        return self.forever.get(path) if method == "GET" else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        files = self.server.files
        path = self.path.partition("?")[0]
        asked = self.headers.get("Range")
        files.asked.append((self.command, path, asked))
        trouble = files.next_trouble(self.command, path)
        if trouble is not None and trouble.kind == "status":
            self._send(trouble.status, b"", {})
            return
        if path in files.redirects:
            self._send(302, b"", {"Location": files.redirects[path]})
            return
        if path.endswith("/"):
            names = [name.removeprefix(path) for name in files.files if name.startswith(path)]
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in names if "/" not in name)
            self._send(200, links.encode(), {"Content-Type": "text/html"})
            return
        if path not in files.files:
            self._send(404, b"", {})
            return
        body, status = files.files[path], 200
        headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} if files.etags else {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if files.ranges and wanted:
            start, stop = int(wanted[1]), min(int(wanted[2] or len(body)) + 1, len(body))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            body, status = body[start:stop], 206
        self._send(status, body, headers, trouble)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], trouble: Trouble | None = None
    ) -> None:
        files = self.server.files
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if files.lengths:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if trouble is None else body[: trouble.after])
        if trouble is None:
            return
        self.close_connection = True
        if trouble.kind == "reset":
            _reset(self.connection)
        elif trouble.kind == "stall":
            files.closing.wait(30)


def _reset(connection: socket.socket) -> None:
    """Close with a linger time of zero, which sends a reset instead of an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    files: FileServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""


@contextlib.contextmanager
def serve_files() -> Iterator[FileServer]:
    """A FileServer that answers while the block runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.files = FileServer(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.files
    finally:
        server.files.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class S3Store:
    """An S3 endpoint with one bucket; `break_reads` is how many coming object reads break off half-way.

    A request is called "METHOD key?query", keys without the bucket; `asked` keeps all of them, `access_keys` who asked.
    It takes the next of `troubles` whose pattern (of `re`) it matches, or the one of `forever`; statuses come as S3
    tells that it is asked too often.
    """

    endpoint: str
    bucket: str = "test-bucket"
    break_reads: int = 0
    ignore_conditions: bool = False
    troubles: list[tuple[str, Trouble]] = field(default_factory=list)
    forever: dict[str, Trouble] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    access_keys: set[str] = field(default_factory=set)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def count(self, pattern: str) -> int:
        """How many requests so far match."""
        return sum(re.match(pattern, request) is not None for request in self.asked)

    def next_trouble(self, request: str) -> Trouble | None:
        for number, (pattern, trouble) in enumerate(self.troubles):
            if re.match(pattern, request):
                del self.troubles[number]
                return trouble
        return next(
            (trouble for pattern, trouble in self.forever.items() if re.match(pattern, request)), None
        )

    def environment(self) -> dict[str, str]:
        """What a process needs to reach the store through `s3://` URLs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def serve_s3() -> Iterator[S3Store]:
    """An S3 store in this process. Requests are answered one at a time: S3's conditions are atomic, moto's are not."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    application = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()
    store = S3Store("")

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        trouble = store.next_trouble(_note(store, environ))
        if trouble is not None and trouble.kind == "status":
            start_response(f"{trouble.status} Busy", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        if store.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with one_at_a_time:
            parts: Iterable[bytes] = application(environ, start_response)
            body = b"".join(parts)
        is_read = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1
        if is_read and store.break_reads > 0:
            store.break_reads -= 1
            # The headers tell the whole length, and the server ends the connection after this.
            return [body[: len(body) // 2]]
        return [body] if trouble is None else _in_trouble(store, trouble, body, environ["werkzeug.socket"])

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        store.endpoint = f"http://127.0.0.1:{server.server_port}"
        for account in s3_backends.values():
            account["global"].reset()
        _make_bucket(store)
        yield store
    finally:
        store.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def _note(store: S3Store, environ: dict[str, Any]) -> str:
    """Keep what is asked and by whom; returns what the request is called."""
    query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
    key = environ["PATH_INFO"].removeprefix(f"/{store.bucket}").removeprefix("/")
    request = f"{environ['REQUEST_METHOD']} {key}{query}"
    store.asked.append(request)
    signed = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    store.access_keys |= {signed[1]} if signed else set()
    return request


def _in_trouble(store: S3Store, trouble: Trouble, body: bytes, connection: socket.socket) -> Iterator[bytes]:
    if trouble.kind == "slow":
        for start in range(0, len(body), step := max(1, len(body) // 20)):
            yield body[start : start + step]
            store.closing.wait(0.02)
        return
    yield body[: trouble.after]
    if trouble.kind == "reset":
        _reset(connection)
    elif trouble.kind == "stall":
        store.closing.wait(30)


@functools.cache
def _what_services_do(data_path: str | None) -> Any:
    """For `botocore.session.create_loader`: its files about all services are read once, not by each client anew."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


@contextlib.contextmanager
def s3_leads_to(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`s3://` URLs of this process and its children go where these variables say."""
    import s3fs

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.session.create_loader", _what_services_do)
    # Each store listens elsewhere, and an instance keeps to the one that it first met.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def s3_for_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """`serve_s3`, and `s3://` URLs of this process and its children go there."""
    with serve_s3() as store, s3_leads_to(store.environment(), monkeypatch):
        yield store


def _make_bucket(store: S3Store) -> None:
    import urllib.request

    request = urllib.request.Request(f"{store.endpoint}/{store.bucket}", method="PUT", data=b"")
    urllib.request.urlopen(request).close()
