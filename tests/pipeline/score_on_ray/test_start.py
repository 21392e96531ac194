"""From the first answer to the work order: one actor chooses the precision for all, and another one if it is lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from patchsieve.pipeline.cluster.nodes import ClusterView
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.row_config import Precision, RowConfig
from patchsieve.pipeline.score.messages import ActorInfo, WorkOrder
from patchsieve.pipeline.score_on_ray.pool import ActorPool, Call, CallResult, PooledActor
from patchsieve.pipeline.score_on_ray.start import ActorStart, QueueOptions
from patchsieve.pipeline.shards.specs import Shard
from tests.helpers.score_runs import score_config

FIRST = Shard(url="/in/0.tar", name="/in/0.tar", id="0", size=1, tag="t")
OPTIONS = QueueOptions(
    size=ActorSize(cpus=2, gpus=1),
    max_actors=None,
    unsorted=False,
    batch_size=None,
    compile=False,
    decode_threads=2,
    decode_pixels=10**8,
    stall_timeout_s=1,
    start_timeout_s=1,
    not_on="",
    log_format="text",
)


class Calls(ActorPool):
    """A pool whose actors only take note of calls."""

    def __init__(self, cards: Iterable[str]) -> None:
        super().__init__(None, OPTIONS.size)
        self.made: list[tuple[str, str]] = []
        self.orders: dict[str, WorkOrder] = {}
        for number, card in enumerate(cards):
            place = Place("host", f"node-{number}", ("0",))
            info = ActorInfo(place=place, process_space="", pid=number)
            self.actors[card] = PooledActor(name=card, handle=None, info=info)

    def call(self, kind: str, actor: PooledActor, *arguments: Any, shard: int = -1) -> None:
        self.made.append((kind, actor.name))
        if kind == "configure":
            assert actor.name not in self.orders, "configured once"
            self.orders[actor.name] = arguments[0]


class Start:
    """Actors on some cards, of which the first that is asked chooses."""

    def __init__(self, *cards: str) -> None:
        self.pool = Calls(cards)
        self.resolved: list[Precision] = []
        self.start = ActorStart(
            self.pool,
            ClusterView(),
            OPTIONS,
            out="/out",
            run_id="run",
            first=FIRST,
            rows=None,
            resolve=self.resolve,
        )

    def resolve(self, precision: Precision) -> RowConfig:
        self.resolved.append(precision)
        return score_config(["/in/0.tar"], "/out", "tiny").rows(size=48, precision=precision, decoder="d")

    def load(self, card: str) -> None:
        self.start.receive_device(
            CallResult(Call("load", card), value=f"cuda {card}"), self.pool.actors[card]
        )

    def lose(self, card: str) -> None:
        self.start.lost(self.pool.actors.pop(card))

    def choose(self, card: str, precision: Precision) -> None:
        self.start.receive_precision(CallResult(Call("choose_precision", card), value=precision))

    @property
    def asked(self) -> list[str]:
        return [actor for kind, actor in self.pool.made if kind == "choose_precision"]


@pytest.mark.parametrize("chosen", ["fp16", "bf16", "fp32"])
def test_every_card_takes_over_what_the_first_one_chose(chosen: Precision) -> None:
    run = Start("V100", "A100", "B200")
    for card in ("A100", "V100"):
        run.load(card)
    run.choose("A100", chosen)
    run.load("B200")
    assert (run.asked, run.resolved) == (["A100"], [chosen])
    assert {card: order.rows.precision for card, order in run.pool.orders.items()} == dict.fromkeys(
        ("V100", "A100", "B200"), chosen
    )


def test_where_the_card_that_was_asked_is_lost_one_that_waits_is_asked() -> None:
    run = Start("V100", "A100", "B200")
    for card in ("V100", "A100"):
        run.load(card)
    run.lose("V100")
    assert run.asked == ["V100", "A100"]
    run.load("B200")
    run.choose("A100", "fp16")
    assert (run.asked, run.resolved) == (["V100", "A100"], ["fp16"])
    assert run.pool.orders.keys() == {"A100", "B200"}


def test_the_loss_of_another_one_changes_nothing() -> None:
    run = Start("V100", "A100", "B200")
    for card in ("V100", "A100"):
        run.load(card)
    run.lose("A100")
    run.load("B200")
    assert run.asked == ["V100"]
    run.choose("V100", "fp16")
    run.lose("B200")
    assert (run.asked, run.resolved) == (["V100"], ["fp16"])
