"""Images per second of the prune job against a bare loop on the same processors; for `benchmarks/prune.py`.

Bare loop: decode and crop, rank, select, encode, one after the other, photos in memory and nothing written, in as many
processes as the job has actors. It calls what the actors call, with as many CPUs and so torch threads. The two take
turns. Starting up is left out: the job's clock runs from the end of the first shard of every actor to the end of the
last shard, with the last one's waiting for the others.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks._common import show
from benchmarks._photos import pack_shard
from benchmarks.score_job import ShardClock
from patchsieve.pipeline.cluster.slots import ActorSize
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.runs.config_file import config_to_yaml
from patchsieve.pipeline.shards.reader import Sample
from patchsieve.ranker.prune.config import PruneConfig
from patchsieve.ranker.prune.ranking import keep_masks, rank
from patchsieve.ranker.prune.request import PruneRequest, make_prune_request
from patchsieve.ranker.prune.sample import Left, encode_image, prepare_sample
from patchsieve.ranker.prune_on_ray.probe import precision_on_cluster
from patchsieve.ranker.prune_on_ray.run import prune
from patchsieve.ranker.select.patch_scorer import PatchScorer, open_patch_source

SHARDS_PER_ACTOR = 4
GOAL = 0.8


class BareLoop:
    """A process of the bare loop."""

    def __init__(self, request: PruneRequest, files: list[bytes]) -> None:
        self._request = request
        self._samples = [
            Sample(f"{at:08d}", {"jpg": f}, {"jpg": f"{at:08d}.jpg"}) for at, f in enumerate(files)
        ]
        keep_freed_memory()
        self._scorer = PatchScorer(request.source, device=torch.device("cpu"), batch_size="auto")
        nobody = dataclasses.replace(
            open_patch_source("baseline:random", fits=None, teacher=None, seed=0),
            grid=request.source.grid,
            patch_size=request.source.patch_size,
        )
        self._nobody = PatchScorer(nobody, device=torch.device("cpu"), batch_size=self._scorer.batch_size)
        self._endless = itertools.cycle(self._samples)

    def run(self, seconds: float, *, ranked: bool = True) -> float:
        """Work for so long, a batch at the least; images per second. Not `ranked`: with random numbers for scores."""
        scorer = self._scorer if ranked else self._nobody
        spec, selector = self._request.spec, self._request.selector
        count, started = 0, time.perf_counter()
        while not count or time.perf_counter() - started < seconds:
            samples = itertools.islice(self._endless, scorer.batch_size)
            scored = rank([prepare_sample(sample, spec) for sample in samples], scorer)
            images = [item for item in scored if not isinstance(item, Left)]
            for image, keep_L in zip(images, keep_masks(selector, images), strict=True):
                encode_image(*image, keep_L, spec)
            count += len(scored)
        return count / (time.perf_counter() - started)


def run_job(config: PruneConfig, actors: int) -> dict[str, float]:
    """One run into a new folder: images per second, and the share of the time that the ranker waited."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        clock = ShardClock()
        config = dataclasses.replace(config, out=folder)
        summary = prune(make_prune_request(config), clock, settings=config_to_yaml(config))
    assert summary.exit_code == 0, summary.lines(folder)
    first = clock.done_at[actors - 1]
    images = summary.images * (1 - actors / summary.shards)
    return {
        "images_per_second": images / (clock.done_at[-1] - first),
        "first_shards_done_after": first - started,
        "waited_share": clock.waited_share,
    }


def measure_job(
    files: list[bytes], *, ranker: str, keep: float, quality: int, actors: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure in so many rounds, `seconds` for either of the two in each, about; prints a table."""
    ray.init(
        num_cpus=2 * actors + 1,  # the resting loops keep theirs, and one is for Ray Data
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=512 * 2**20,
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = PruneConfig(
            shards=(pack_shard(Path(folder) / "one" / "photo.tar", files, 1),),
            out=f"{folder}/out",
            ranker=ranker,
            keep=keep,
            quality=quality,
            gpus_per_actor=0.0,
            cpus_per_actor=1,
            max_actors=actors,
        )
        one: Any = ray.remote(num_cpus=1)(BareLoop)
        chosen = precision_on_cluster(
            make_prune_request(asked).source, ActorSize(cpus=1, gpus=0), 1, lambda: None
        )
        asked = dataclasses.replace(asked, precision=chosen)
        request = make_prune_request(asked)
        loops = [one.remote(request, files) for _ in range(actors)]

        def bare(seconds: float, *, ranked: bool = True) -> float:
            return float(sum(ray.get([loop.run.remote(seconds, ranked=ranked) for loop in loops])))

        bare(1)
        photos = max(1, round(bare(seconds / 2) * seconds / (SHARDS_PER_ACTOR - 1) / actors))
        shards = tuple(
            pack_shard(Path(folder) / "in" / f"{number}.tar", files, photos, start=number * photos)
            for number in range(SHARDS_PER_ACTOR * actors)
        )
        jobs, alone = [], []
        for _ in range(rounds):
            # Once before and once after, so that what changes slowly on the machine hits both alike.
            before = bare(seconds / 2)
            jobs.append(run_job(dataclasses.replace(asked, shards=shards), actors))
            alone.append((before + bare(seconds / 2)) / 2)
        unranked = bare(seconds / 2, ranked=False)
    ray.shutdown()
    ratios = [job["images_per_second"] / loop for job, loop in zip(jobs, alone, strict=True)]
    middle = statistics.median(ratios)
    told = {
        "actors": actors,
        "precision": asked.precision,
        "images_per_second_without_the_ranker": unranked,
        "photos_per_shard": photos,
        "bare_images_per_second": alone,
        "job": jobs,
        "ratios": ratios,
        "ratio": middle,
    }
    rows = [
        [f"{loop:.1f}", f"{job['images_per_second']:.1f}", f"{each:.3f}", f"{job['waited_share']:.0%}"]
        for loop, job, each in zip(alone, jobs, ratios, strict=True)
    ]
    show(
        f"Images per second, {actors} actors of 1 CPU, {len(shards)} shards of {photos} photos",
        ["bare loop", "job", "ratio", "ranker waited"],
        rows,
    )
    print(f"ranked in {asked.precision}; decode, crop and encode alone: {unranked:.1f} images per second")
    met = "met" if middle >= GOAL else "missed"
    print(f"the job reaches {middle:.3f} of the bare loop (goal: {GOAL} or above: {met})")
    return told
