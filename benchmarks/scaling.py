"""The queue policy of a score run with 1,000 actors and 1,000,000 shards: the real policy, simulated actors.

Shards have mixed sizes, actors mixed speeds, and a tenth of the actors is lost on the way. Time is simulated: an actor
works on the shard it got first and has the next one in hand, as real ones do. Measured are the driver's own costs:
processor time in the policy for each shard, memory, and the end of the work against the ideal, which is the work that
is done divided by the capacity that is there, second by second, until nothing is left.

What is simulated is not the driver's calls to Ray, whose cost this says nothing about.
"""

from __future__ import annotations

import dataclasses
import heapq
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks._common import show, write_json
from patchsieve.pipeline.score_on_ray.policy import Gone, QueuePolicy

MEBI = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the queue policy at scale."""

    actors: int = 1000
    """Actors at the start."""
    shards: int = 1_000_000
    """Shards of the run."""
    lost: float = 0.1
    """Share of the actors whose nodes are lost, at times spread over the run."""
    seed: int = 0
    """Seed of sizes, speeds and losses."""
    plot: Path | None = None
    """A picture of the shards done over time, as PNG (needs the extra `plots`)."""
    out: Path = Path("bench-out/scaling.json")
    """Results as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """Sizes in bytes, speeds in bytes per second, losses as (time, actor) in order of time."""

    sizes: list[int]
    speeds: list[float]
    losses: list[tuple[float, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Simulated seconds until the end, processor seconds of the policy, shards done at a hundred moments."""

    seconds: float
    policy_seconds: float
    redone: int
    curve: list[tuple[float, int]]


def make_scene(options: Options) -> Scene:
    """Sizes with a long tail around 300 MB, three kinds of GPU, losses over nine tenths of the expected time."""
    draw = np.random.default_rng(options.seed)
    sizes = np.clip(draw.lognormal(np.log(300 * MEBI), 0.5, options.shards), 10 * MEBI, 4096 * MEBI).astype(
        np.int64
    )
    # A third each of a slow, a usual and a fast one, each of them within a tenth of its kind.
    speeds = draw.choice([2.0, 4.0, 10.0], options.actors) * MEBI * draw.uniform(0.9, 1.1, options.actors)
    expected = sizes.sum() / speeds.sum()
    lost = draw.choice(options.actors, int(options.lost * options.actors), replace=False)
    times = np.sort(draw.uniform(0, 0.9 * expected, len(lost)))
    return Scene(
        sizes=sizes.tolist(),
        speeds=speeds.tolist(),
        losses=[(float(at), int(actor)) for at, actor in zip(times, lost, strict=True)],
    )


def ideal_seconds(scene: Scene) -> float:
    """When work that could be cut at will would be done by the actors that are there at each moment."""
    left, capacity, now = float(sum(scene.sizes)), sum(scene.speeds), 0.0
    for at, actor in scene.losses:
        if left <= (at - now) * capacity:
            break
        left -= (at - now) * capacity
        now, capacity = at, capacity - scene.speeds[actor]
    return now + left / capacity


def simulate(scene: Scene) -> Outcome:
    """Run the policy against simulated actors until every shard has ended."""
    clock = time.process_time
    began = clock()
    policy = QueuePolicy(scene.sizes)
    spent = clock() - began
    # (time, what happens, actor, shard): a loss is -1 and comes before a finish of the same moment.
    events: list[tuple[float, int, int]] = [(at, actor, -1) for at, actor in scene.losses]
    heapq.heapify(events)
    names = [f"actor-{number}" for number in range(len(scene.speeds))]
    alive = [True] * len(names)
    # The shard that an actor works on, and when it ends; those in hand behind it are the policy's to know.
    working: dict[int, int] = {}
    curve, step, redone, now = [(0.0, 0)], max(1, len(scene.sizes) // 100), 0, 0.0

    def work(actor: int) -> None:
        """Let an actor take what it may have, and start on the first of it if it rests."""
        nonlocal spent
        began = clock()
        while policy.assign(names[actor], now) is not None:
            pass
        held = policy.holding(names[actor])
        spent += clock() - began
        if actor not in working and held:
            working[actor] = held[0]
            heapq.heappush(events, (now + scene.sizes[held[0]] / scene.speeds[actor], actor, held[0]))

    for actor, name in enumerate(names):
        policy.add_actor(name)
        work(actor)
    while not policy.ended:
        now, actor, shard = heapq.heappop(events)
        if not alive[actor]:
            continue
        began = clock()
        if shard < 0:
            redone += len(policy.holding(names[actor]))
            alive[actor] = False
            policy.actor_gone(names[actor], Gone.LOST, now)
            spent += clock() - began
            # What it held may be wanted by actors that rest.
            for other, name in enumerate(names):
                if alive[other] and not policy.holding(name):
                    work(other)
            continue
        policy.finish(names[actor], shard)
        spent += clock() - began
        del working[actor]
        if policy.finished % step == 0:
            curve.append((now, policy.finished))
        work(actor)
    return Outcome(seconds=now, policy_seconds=spent, redone=redone, curve=curve)


def draw_plot(outcome: Outcome, ideal: float, scratch: Path) -> None:
    """Shards done over simulated hours, beside the straight line to the ideal end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([at / 3600 for at, _ in outcome.curve], [done for _, done in outcome.curve], label="simulated")
    axes.axvline(ideal / 3600, color="gray", linestyle="--", label="ideal end")
    axes.set(xlabel="hours", ylabel="shards done")
    axes.legend()
    figure.savefig(scratch, dpi=120)


def main(options: Options) -> None:
    """Simulate, print a table, write the JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    scene = make_scene(options)
    outcome, ideal = simulate(scene), ideal_seconds(scene)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results: dict[str, Any] = {
        "actors": options.actors,
        "shards": options.shards,
        "bytes": sum(scene.sizes),
        "actors_lost": len(scene.losses),
        "shards_redone": outcome.redone,
        "simulated_seconds": outcome.seconds,
        "ideal_seconds": ideal,
        "over_ideal": outcome.seconds / ideal - 1,
        "policy_us_per_shard": 1e6 * outcome.policy_seconds / options.shards,
        "peak_bytes": peak,
        "bytes_before": before,
        "curve": outcome.curve,
    }
    show(
        f"Queue policy: {options.shards:,} shards, {options.actors:,} actors of which {len(scene.losses)} are lost",
        ["", "measured", "goal"],
        [
            ["policy per shard", f"{results['policy_us_per_shard']:.1f} us", "under 1,000 us"],
            ["memory, peak of the process", f"{peak / MEBI:.0f} MiB", "under 1 GB"],
            ["of it before the simulation", f"{before / MEBI:.0f} MiB", ""],
            ["end against the ideal", f"+{results['over_ideal']:.2%}", "within 5 %"],
            ["shards begun again", f"{outcome.redone}", ""],
        ],
    )
    write_json({"scaling": results}, options.out)
    if options.plot is not None:
        draw_plot(outcome, ideal, options.plot)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
