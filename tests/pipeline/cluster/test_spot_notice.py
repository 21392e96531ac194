"""Notices of three clouds, from a metadata service in this process."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from patchsieve.pipeline.cluster import spot_notice
from patchsieve.pipeline.cluster.spot_notice import Notice, drain_command, http_ask, main, wait_for_notice

NOW = datetime.datetime(2026, 3, 1, 3, 0, tzinfo=datetime.UTC).timestamp()
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


class Metadata(BaseHTTPRequestHandler):
    """A metadata service: AWS's hands out a token for each question and takes no other; others want their header."""

    answers: dict[str, str | int]
    asked: list[str]
    cloud = "aws"
    tokens = 0

    def do_PUT(self) -> None:
        if self.cloud != "aws":
            return self._answer(405, "")
        wants = (
            self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60" and self.path == "/latest/api/token"
        )
        Metadata.tokens += wants
        return self._answer(200 if wants else 400, f"token-{Metadata.tokens}")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        allowed = {
            "aws": self.headers["X-aws-ec2-metadata-token"] == f"token-{Metadata.tokens}",
            "gcp": self.headers["Metadata-Flavor"] == "Google",
            "azure": self.headers["Metadata"] == "true",
        }[self.cloud]
        answer = self.answers.get(self.path, 404) if allowed else 401
        self._answer(*((200, answer) if isinstance(answer, str) else (answer, "")))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Metadata, "answers", {}, raising=False)
    monkeypatch.setattr(Metadata, "asked", [], raising=False)
    monkeypatch.setattr(Metadata, "tokens", 0)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Waiting:
    """Waits at a service; each nap makes the next of some changes to what it answers."""

    def __init__(self, service: str, *changes: dict[str, str | int]) -> None:
        self.said: list[str] = []
        self.naps: list[float] = []
        self._ask, self._changes = http_ask(service), list(changes)

    def __call__(self, *clouds: str, on_rebalance: bool = False) -> tuple[str, Notice]:
        def sleep(seconds: float) -> None:
            self.naps.append(seconds)
            Metadata.answers.update(self._changes.pop(0))

        given = clouds or tuple(spot_notice.CLOUDS)
        return wait_for_notice(
            self._ask, given, self.said.append, on_rebalance=on_rebalance, now=lambda: NOW, sleep=sleep
        )


def test_aws_tells_two_minutes_ahead(service: str) -> None:
    told = '{"action": "terminate", "time": "2026-03-01T03:02:00Z"}'
    waiting = Waiting(service, {}, {REBALANCE: '{"noticeTime": "2026-03-01T02:59:00Z"}'}, {}, {ACTION: told})
    cloud, notice = waiting()
    assert cloud == "aws"
    assert notice == Notice("spot instance is taken back: 2026-03-01T03:02:00Z", 120.0)
    # The advice is said once, and each question has a token of its own.
    assert waiting.said == ["rebalancing is recommended"]
    assert Metadata.tokens == 5
    assert waiting.naps == [5.0] * 4
    assert drain_command("10.0.0.1:6379", cloud, notice) == [
        *("ray", "drain-node", "--address", "10.0.0.1:6379", "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", notice.text, "--deadline-remaining-seconds", "100"),
    ]


def test_advice_to_rebalance_drains_where_that_is_asked_for(service: str) -> None:
    waiting = Waiting(service, {REBALANCE: "{}"})
    cloud, notice = waiting(on_rebalance=True)
    assert not notice.final
    assert "--deadline-remaining-seconds" not in drain_command("h:1", cloud, notice)


@pytest.mark.parametrize("told", ["{}", "no JSON", '{"time": 5}', "[]"])
def test_a_notice_without_a_time_counts_as_two_minutes(service: str, told: str) -> None:
    assert Waiting(service, {ACTION: told})("aws")[1].seconds_left == 120.0


def test_google_tells_half_a_minute_ahead(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metadata, "cloud", "gcp")
    Metadata.answers[PREEMPTED] = "FALSE"
    waiting = Waiting(service, {}, {PREEMPTED: "TRUE\n"})
    cloud, notice = waiting()
    assert (cloud, notice.seconds_left) == ("gcp", 30.0)
    assert drain_command("h:1", cloud, notice)[-1] == "25"
    assert waiting.naps == [1.0, 1.0]
    assert waiting.said == []


def test_azure_tells_which_machine_goes(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def events(name: str, kind: str = "Preempt") -> dict[str, str | int]:
        when = "Sun, 01 Mar 2026 03:00:40 GMT"
        return {
            EVENTS: f'{{"Events": [{{"EventType": "{kind}", "Resources": ["{name}"], "NotBefore": "{when}"}}]}}'
        }

    monkeypatch.setattr(Metadata, "cloud", "azure")
    Metadata.answers |= {EVENTS: '{"Events": []}', NAME: "me"}
    waiting = Waiting(service, events("another"), events("me", "Reboot"), events("me"))
    assert waiting() == ("azure", Notice("spot machine is evicted", 40.0))
    assert waiting.said == []


@pytest.mark.parametrize("trouble", [500, 302, 401])
def test_a_service_in_trouble_is_asked_again_and_said_once(service: str, trouble: int) -> None:
    Metadata.answers[ACTION] = trouble
    waiting = Waiting(service, {}, {}, {ACTION: "{}"})
    assert waiting("aws")[0] == "aws"
    (line,) = waiting.said
    assert str(trouble) in line


def test_without_a_service_it_waits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metadata, "answers", {}, raising=False)
    waiting = Waiting("http://127.0.0.1:9", {}, {})
    with pytest.raises(IndexError):  # out of changes: it would wait on
        waiting()
    (line,) = waiting.said
    assert line.count("refused") == 3


def test_a_drain_that_fails_is_asked_for_again(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    class Ended:
        def __init__(self, command: list[str], *, check: bool) -> None:
            calls.append(command)
            self.returncode = int(len(calls) < 3)

    monkeypatch.setattr("subprocess.run", Ended)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    Metadata.answers[ACTION] = "{}"
    assert main(["10.0.0.1:6379", "--cloud", "aws", "--metadata", service]) == 0
    assert len(calls) == 3
    assert calls[0][:4] == ["ray", "drain-node", "--address", "10.0.0.1:6379"]
