"""Where web servers may lead a reader, and for how long a store may say nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.storage import retry
from patchsieve.pipeline.storage.retry import ATTEMPTS, STALL_VARIABLE, Pauses
from patchsieve.pipeline.storage.web import REDIRECT_HOSTS, check_redirect
from tests.helpers.servers import serve_files


def refused(source: str, target: str) -> str:
    """Why this redirect may not be followed, "" where it may."""
    try:
        asyncio.run(check_redirect(source, {"Location": target}))
    except UserError as error:
        return str(error)
    return ""


def test_redirects_stay_within_their_host() -> None:
    for source, target in [
        ("http://h/a.tar", "/b.tar"),
        ("http://h/a.tar", "http://h:80/b.tar"),
        ("http://h/a.tar", "https://h/b.tar"),
        ("http://[2001:db8::1]:8080/a", "http://[2001:db8::1]:8080/b"),
    ]:
        assert refused(source, target) == ""
    for target in (
        "https://cdn.h/b.tar",
        "http://h:8265/api",
        "//other/b.tar",
        "http://127.0.0.1/",
        "file:///etc",
    ):
        assert "redirects to the host" in refused("http://me:secret@h/a.tar", target)
        assert "secret" not in refused("http://me:secret@h/a.tar", target)
    assert refused("https://h/a.tar", "http://h/a.tar") != "", "to plain text"


def test_hosts_that_are_named_may_be_led_to_but_never_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REDIRECT_HOSTS, "192.0.2.7, cdn.example")
    assert refused("http://h/a", "http://192.0.2.7/a") == ""
    assert refused("http://h/a", "http://192.0.2.8/a") != ""
    monkeypatch.setenv(REDIRECT_HOSTS, "*")
    assert refused("http://h/a", "http://192.0.2.8/a") == ""
    for target in (
        "127.0.0.1",
        "localhost",
        "169.254.169.254",
        "[::1]",
        "[fe80::1]",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
    ):
        assert "this machine or its link" in refused("http://h/a", f"http://{target}/latest"), target


def test_a_server_that_leads_elsewhere_is_told_in_one_line() -> None:
    with serve_files() as server, serve_files() as other:
        server.files["/b.tar"] = other.files["/b.tar"] = b"0123456789"
        server.redirects["/a.tar"] = "/b.tar"
        assert storage.read_bytes(server.url("/a.tar")) == b"0123456789"
        server.redirects["/a.tar"] = other.url("/b.tar")
        for read in (
            storage.read_bytes,
            lambda url: storage.read_range(url, 2, 5),
            storage.stat,
        ):
            with pytest.raises(UserError, match=r"redirects to the host 127\.0\.0\.1.*REDIRECT_HOSTS"):
                read(server.url("/a.tar"))
        assert other.asked == []


def test_a_store_that_says_nothing_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: clock, sleep=lambda seconds: None))
    calls = 0

    def stalls() -> None:
        nonlocal clock, calls
        clock, calls = clock + 75.0, calls + 1
        raise TimeoutError("no byte in 75 s")

    with pytest.raises(InfrastructureError, match="no byte"):
        retry.with_retry(stalls, what="reading")
    assert calls == 3, "after 225 s of the 180 that are the default"
    monkeypatch.setenv(STALL_VARIABLE, "60")
    with pytest.raises(InfrastructureError, match="no byte"):
        retry.with_retry(stalls, what="reading")
    assert calls == 4
    monkeypatch.setenv(STALL_VARIABLE, "soon")
    with pytest.raises(UserError, match="PATCHSIEVE_STORE_TIMEOUT is 'soon'"):
        Pauses()


def test_pauses_double_and_end() -> None:
    pauses = Pauses()
    seconds = [pauses.next() for _ in range(ATTEMPTS)]
    assert seconds.pop() is None
    for number, pause in enumerate(seconds):
        assert pause is not None
        assert 0.1 * 2**number <= pause <= 0.3 * 2**number
