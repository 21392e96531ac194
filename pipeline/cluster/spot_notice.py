"""Waits for the cloud's notice that this spot machine will be taken, then has Ray drain the node.

    python -m patchsieve.pipeline.cluster.spot_notice HEAD_ADDRESS

No new work comes to a drained node, and what it works on it finishes in time or gives back. The notice is at the
metadata service of the machine, which every cloud has at one address and asks for otherwise: AWS two minutes ahead,
Google and Azure some 30 seconds. The standard library alone: it runs on every worker, whatever is installed there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from patchsieve.pipeline.shown import say

METADATA = "http://169.254.169.254"
EVERY_S = {"aws": 5.0, "gcp": 1.0, "azure": 1.0}
"""Seconds between two questions, by cloud: Google and Azure tell late."""
MARGIN_S = {"aws": 20.0, "gcp": 5.0, "azure": 5.0}
"""Seconds that are kept back of what the notice leaves."""
SHORT_S = 30.0
"""What Google leaves, and Azure where it tells no time."""
_ANSWER_S = 2.0
_LIMIT = 2**20
_AWS_TOKEN = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
_AWS = "/latest/meta-data"
_GCP = "/computeMetadata/v1/instance"
_AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"

Ask = Callable[[str, str, Mapping[str, str]], str | None]
"""Method, path and headers of a question; the answer, None for 404. Raises OSError where nobody answers, or refuses."""


@dataclasses.dataclass(frozen=True)
class Notice:
    """This machine will be taken in so many seconds, or may be soon (`final` False), with no time told."""

    text: str
    seconds_left: float | None
    final: bool = True


def ask_aws(ask: Ask, now: float) -> Notice | None:
    """A spot instance's notice; before it there may be advice to rebalance."""
    # A token lives for these questions. Version 1 of the service, without tokens, is off where we set machines up.
    token = {"X-aws-ec2-metadata-token": ask("PUT", "/latest/api/token", _AWS_TOKEN) or ""}
    told = ask("GET", f"{_AWS}/spot/instance-action", token)
    if told is not None:
        when = _object(told).get("time")
        left = _seconds_until(when, now, datetime.fromisoformat)
        return Notice(f"spot instance is taken back: {when}", 120.0 if left is None else left)
    advice = ask("GET", f"{_AWS}/events/recommendations/rebalance", token)
    return None if advice is None else Notice("rebalancing is recommended", None, final=False)


def ask_gcp(ask: Ask, now: float) -> Notice | None:
    """Google's: TRUE from when it ends the machine, of which the first half minute is ours."""
    told = ask("GET", f"{_GCP}/preempted", {"Metadata-Flavor": "Google"})
    if told is None:
        raise OSError("not Google's metadata service")
    return Notice("spot machine is pre-empted", SHORT_S) if told.strip() == "TRUE" else None


def ask_azure(ask: Ask, now: float) -> Notice | None:
    """Azure's: an event of pre-emption that names this machine; those of its whole set are told to all."""
    told = ask("GET", _AZURE_EVENTS, {"Metadata": "true"})
    if told is None:
        raise OSError("not Azure's metadata service")
    events = [event for event in _object(told).get("Events", ()) if event.get("EventType") == "Preempt"]
    name = ask("GET", _AZURE_NAME, {"Metadata": "true"}) if events else None
    for event in events:
        if name in event.get("Resources", ()):
            left = _seconds_until(event.get("NotBefore"), now, parsedate_to_datetime)
            return Notice("spot machine is evicted", SHORT_S if left is None else left)
    return None


CLOUDS = {"aws": ask_aws, "gcp": ask_gcp, "azure": ask_azure}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _seconds_until(when: Any, now: float, parse: Callable[[str], datetime]) -> float | None:
    try:
        return parse(str(when)).timestamp() - now
    except (ValueError, TypeError):
        return None


def http_ask(base: str) -> Ask:
    """Questions over HTTP, by no proxy and following no redirect."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def ask(method: str, path: str, headers: Mapping[str, str]) -> str | None:
        request = urllib.request.Request(base + path, method=method, headers=dict(headers))
        try:
            with opener.open(request, timeout=_ANSWER_S) as answer:
                return str(answer.read(_LIMIT).decode(errors="replace"))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise

    return ask


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """Where a metadata service leads is no metadata service."""


def wait_for_notice(
    ask: Ask,
    clouds: Sequence[str],
    tell: Callable[[str], None],
    *,
    on_rebalance: bool = False,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, Notice]:
    """The cloud that told, and its notice. Of several clouds the first one that answers is taken.

    `on_rebalance`: AWS's advice counts as a notice; it is told in any case. A service that does not answer is asked
    again, and said once.
    """
    said = ""
    while True:
        told = ""
        for cloud in clouds:
            try:
                notice = CLOUDS[cloud](ask, now())
            except OSError as error:
                told = f"{told}; {cloud}: {error}".removeprefix("; ")
                continue
            clouds = [cloud]
            if notice is not None and (notice.final or on_rebalance):
                return cloud, notice
            told = notice.text if notice is not None else ""
            break
        if told and told != said:
            tell(told)
        said = told or said
        sleep(max(EVERY_S[cloud] for cloud in clouds))


def drain_command(head: str, cloud: str, notice: Notice) -> list[str]:
    """Ray's command that drains the node that it runs on; its deadline comes before the machine's end."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", notice.text]
    deadline = []
    if notice.seconds_left is not None:
        left = max(1, int(notice.seconds_left - MARGIN_S[cloud]))
        deadline = ["--deadline-remaining-seconds", str(left)]
    return ["ray", "drain-node", "--address", head, *reason, *deadline]


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait, drain, and return what `ray drain-node` did; asked again while there is time where it fails."""
    parser = argparse.ArgumentParser(prog="spot_notice", description=__doc__.partition("\n")[0])
    parser.add_argument("head", help="address of the cluster's head, such as 10.0.0.12:6379")
    parser.add_argument("--cloud", choices=["auto", *CLOUDS], default="auto")
    parser.add_argument("--on-rebalance", action="store_true", help="drain at AWS's advice to rebalance, too")
    parser.add_argument("--metadata", default=METADATA, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    clouds = list(CLOUDS) if given.cloud == "auto" else [given.cloud]
    cloud, notice = wait_for_notice(http_ask(given.metadata), clouds, say, on_rebalance=given.on_rebalance)
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        left = None if notice.seconds_left is None else notice.seconds_left - passed
        now = dataclasses.replace(notice, seconds_left=left)
        say(f"{cloud}: {now.text}; draining the node")
        code = subprocess.run(drain_command(given.head, cloud, now), check=False).returncode
        if code == 0 or (left or 0.0) <= MARGIN_S[cloud]:
            return code
        time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main())
