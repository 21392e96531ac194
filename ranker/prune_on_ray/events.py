"""What happens in a prune run, told to whoever watches it: as metrics, and as lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from patchsieve.pipeline.cluster.metrics import RunMetrics
from patchsieve.pipeline.runs.log import log_event
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune_on_ray.waves import PruneWaves


class PruneEvents:
    """Tells of the pass of one run that prunes; `todo`: its shards."""

    def __init__(self, run_id: str, todo: Sequence[Shard]) -> None:
        self._metrics = RunMetrics("prune", run_id)
        self._names = {shard.id: shard.name for shard in todo}
        self._results = self._done = 0

    def tell(self, waves: PruneWaves) -> None:
        """Called after every answer: the newest result is the last one."""
        if len(waves.results) > self._results:
            self._results = len(waves.results)
            self._tell_newest(waves)
        self._metrics.set("patchsieve_shards_left", len(self._names) - self._done - len(waves.failures))
        self._metrics.set("patchsieve_actors", waves.actors, state="ready")

    def failed(self, shard: Shard, attempts: int, reason: str) -> None:
        """A shard was given up."""
        self._metrics.count("patchsieve_shards", 1, outcome="failed")
        told = {"shard": shard.name, "attempts": attempts, "reason": reason}
        log_event("shard failed", told, level=logging.ERROR)

    def _tell_newest(self, waves: PruneWaves) -> None:
        result = waves.results[next(reversed(waves.results))]
        self._metrics.errors(result.faults)
        self._metrics.count("patchsieve_images", result.images, host=waves.node)
        self._metrics.count("patchsieve_waited_seconds", result.waited_s, host=waves.node)
        self._metrics.count("patchsieve_worked_seconds", result.seconds - result.waited_s, host=waves.node)
        if result.failed is not None:
            return
        self._done += 1
        self._metrics.count("patchsieve_shards", 1, outcome="done")
        self._metrics.observe("patchsieve_shard_seconds", result.seconds, host=waves.node)
        times = {"seconds": round(result.seconds, 3), "waited_s": round(result.waited_s, 3)}
        counts = {"images": result.images, "kept": result.kept, "patches": result.patches}
        told = {"shard": self._names[result.shard_id], "node": waves.node, **times, **counts}
        log_event("shard done", {**told, "faults": result.faults})
