"""What looking at a fleet costs on an object store, in requests: `status`, ticks and lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import _listing_server
from benchmarks._fresh_process import status, tick
from benchmarks._listed_outputs import BUCKET
from benchmarks._listing_server import serve_listing
from benchmarks.fleet import SHARDS, Store, many_corpora, one_output
from patchsieve.pipeline.schedule.config import ListConfig
from patchsieve.pipeline.schedule.listing import list_corpora
from tests.helpers.servers import s3_leads_to

SOURCE, OUT = f"{BUCKET}/corpora/*/", f"{BUCKET}/out"
NEW = f"{SHARDS} of {SHARDS} shards to score"


def requests(store: Store, monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> Counter[str]:
    """How many requests of each method a look makes."""
    with (
        serve_listing(store.keys, store.objects) as server,
        s3_leads_to(server.environment, monkeypatch),
    ):
        look()
    return Counter(request.partition(" ")[0] for request in server.asked)


def test_status_takes_a_listing_and_footers_only_of_tables_that_no_run_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(count: int, *, ended: bool) -> Counter[str]:
        def look() -> None:
            assert status(OUT)["done"] == count

        return requests(one_output(count, tmp_path, ended=ended), monkeypatch, look)

    monkeypatch.setattr(_listing_server, "PAGE", 20)
    few, more = asked(10, ended=True), asked(30, ended=True)
    assert more - few == Counter(LIST=1)
    assert not few - more
    assert asked(18, ended=False) - asked(10, ended=False) == Counter(GET=8)


def ticked(outcome: str) -> Callable[[], None]:
    def look() -> None:
        assert list(tick(SOURCE, OUT)["outcomes"]) == [outcome]

    return look


def listed() -> None:
    assert {one["state"] for one in list_corpora(ListConfig(source=(SOURCE,), out=OUT))} == {NEW}


@pytest.mark.parametrize(
    ("scored", "look", "of_each"),
    [
        # Of corpus, output, tables and jobs a listing; settings, cache and one job, each looked up and read.
        (True, ticked("scored"), Counter(LIST=4, HEAD=3, GET=3)),
        # Of an output that is not there the client asks twice.
        (False, ticked(f"would be submitted: {NEW}"), Counter(LIST=3)),
        (False, listed, Counter(LIST=3)),
    ],
    ids=["a tick, scored", "a tick, new", "a list, new"],
)
def test_ticks_and_lists_take_few_requests_for_each_corpus(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scored: bool,
    look: Callable[[], None],
    of_each: Counter[str],
) -> None:
    few, more = (requests(many_corpora(n, tmp_path, scored=scored), monkeypatch, look) for n in (1, 3))
    assert more - few == Counter({kind: 2 * count for kind, count in of_each.items()})
