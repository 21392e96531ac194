"""Whom the driver lets go when a node is drained, with actors that only take note."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from patchsieve.pipeline.cluster.nodes import ClusterView
from patchsieve.pipeline.cluster.places import Place
from patchsieve.pipeline.cluster.slots import ActorSize, NodeResources
from patchsieve.pipeline.output.folder import OutputFolder
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.score.messages import ActorInfo, Progress
from patchsieve.pipeline.score_on_ray import queue
from patchsieve.pipeline.score_on_ray.events import QueueEvents
from patchsieve.pipeline.score_on_ray.pool import ActorPool, Call, CallResult, PooledActor
from patchsieve.pipeline.score_on_ray.start import QueueOptions
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.tables.schema import SCORES
from tests.helpers.score_runs import score_config

OPTIONS = QueueOptions(
    size=ActorSize(cpus=1, gpus=0),
    max_actors=None,
    unsorted=False,
    batch_size=4,
    compile=False,
    decode_threads=1,
    decode_pixels=10**8,
    stall_timeout_s=1e9,
    start_timeout_s=1e9,
    not_on="",
    log_format="text",
)
SHARDS = [Shard(url=f"/in/{n}.tar", name=f"/in/{n}.tar", id=str(n), size=10, tag="t") for n in range(9)]


class Done(Exception):  # noqa: N818 (no error)
    """The script is over."""


class Cluster:
    """Nodes of one CPU each, whose actors answer in their order; what happens is told in steps of the driver."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.draining: dict[str, float | None] = {}
        self.gone: list[tuple[str, str]] = []
        self.script: deque[Any] = deque()
        # Actors of these nodes never come further than telling where they are.
        self.slow: set[str] = set()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()

    class View(ClusterView):
        def look(self) -> None:
            self.draining = made.draining
            left = [name for name in made.nodes if name not in made.draining]
            self.nodes = {name: NodeResources(cpus=1, gpus=0, node_id=name) for name in left}

    class Pool(ActorPool):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.answers: list[CallResult] = []

        def spawn(self) -> None:
            taken = {name.removeprefix("of ") for name in self.actors}
            name = next((node for node in made.nodes if node not in taken | set(made.draining)), "nowhere")
            actor = PooledActor(name=f"of {name}", handle=None)
            self.actors[actor.name] = actor
            info = ActorInfo(place=Place(name, name, ()), process_space="", pid=1)
            self.answers.append(CallResult(Call("info", actor.name), value=info))

        def call(self, kind: str, actor: PooledActor, *arguments: Any, shard: int = -1) -> None:
            value = {"load": "cpu", "configure": 4, "progress": Progress()}.get(kind)
            if value is not None and actor.node_id not in made.slow:
                self.answers.append(CallResult(Call(kind, actor.name), value=value))

        def wait(self, timeout_s: float) -> list[CallResult]:
            answers, self.answers = self.answers, []
            return answers

        def remove(self, actor: PooledActor) -> None:
            self.actors.pop(actor.name)

    monkeypatch.setattr(queue, "ActorPool", Pool)
    monkeypatch.setattr(queue, "ClusterView", View)
    monkeypatch.setattr(queue, "POLL_S", 0.0)
    monkeypatch.setattr(
        QueueEvents,
        "actor_gone",
        lambda self, actor, why, reason, held: made.gone.append((actor.name, reason)),
    )
    return made


def play(cluster: Cluster, *steps: Any) -> None:
    """Run the driver; each step changes the cluster once the driver has come round often enough to settle."""
    rounds, left = 0, deque(steps)

    def show(totals: Totals) -> None:
        nonlocal rounds
        rounds += 1
        if rounds % 6 == 0:
            if not left:
                raise Done
            left.popleft()()

    driver = queue.ShardQueue(
        SHARDS,
        None,
        OutputFolder("/out", SCORES, run_id="run"),
        OPTIONS,
        out="/out",
        run_id="run",
        rows=score_config(["/in/0.tar"], "/out", "tiny").rows(size=48, precision="fp32", decoder="d"),
        resolve=lambda precision: pytest.fail("the precision is known"),
        show=show,
    )
    with pytest.raises(Done):
        driver.run()


def test_a_drained_node_costs_no_actor_that_is_being_started_elsewhere(cluster: Cluster) -> None:
    cluster.nodes, cluster.slow = ["a", "b"], {"c"}

    def join() -> None:
        cluster.nodes.append("c")

    def drain() -> None:
        # Its actor has time to finish the shard in its hands.
        cluster.draining["a"] = None

    before: list[tuple[str, str]] = []
    play(cluster, join, drain, lambda: before.extend(cluster.gone))
    assert before == []


def test_who_has_to_go_for_want_of_room_is_told_so(cluster: Cluster) -> None:
    cluster.nodes, cluster.slow = ["a", "b", "c"], {"c"}

    def lose() -> None:
        cluster.nodes.remove("b")

    before: list[tuple[str, str]] = []
    play(cluster, lose, lambda: before.extend(cluster.gone))
    assert before == [("of c", "the cluster has no room for it any more")]
