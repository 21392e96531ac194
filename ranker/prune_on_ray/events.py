"""What happens in a prune run, for whoever watches it: as metrics, and as lines of the log."""

from __future__ import annotations

import logging

from patchsieve.pipeline.cluster.metrics import RunMetrics
from patchsieve.pipeline.runs.log import log_event
from patchsieve.pipeline.runs.progress import Totals
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.ranker.prune.ranking import PruneResult


class PruneEvents:
    """Tells of the pass of one run that prunes."""

    def __init__(self, run_id: str) -> None:
        self._metrics = RunMetrics("prune", run_id)

    def shard_ended(self, shard: Shard, result: PruneResult, host: str) -> None:
        """A worker on `host` came to the end of a shard, with an output or, for good, without."""
        self._metrics.errors(result.faults)
        self._metrics.count("patchsieve_images", result.images, host=host)
        self._metrics.count("patchsieve_waited_seconds", result.waited_s, host=host)
        self._metrics.count("patchsieve_worked_seconds", result.seconds - result.waited_s, host=host)
        if result.failed is None:
            self._metrics.count("patchsieve_shards", 1, outcome="done")
            self._metrics.observe("patchsieve_shard_seconds", result.seconds, host=host)
            times = {"seconds": round(result.seconds, 3), "waited_s": round(result.waited_s, 3)}
            counts = {"images": result.images, "kept": result.kept, "patches": result.patches}
            faults = {"faults": result.faults}
            log_event("shard done", {"shard": shard.name, "node": host, **times, **counts, **faults})

    def shard_failed(self, shard: Shard, attempts: int, reason: str) -> None:
        """A shard was given up."""
        self._metrics.count("patchsieve_shards", 1, outcome="failed")
        fields = {"shard": shard.name, "attempts": attempts, "reason": reason}
        log_event("shard failed", fields, level=logging.ERROR)

    def totals(self, totals: Totals) -> None:
        """The counts of now."""
        self._metrics.set("patchsieve_shards_left", totals.shards - totals.done - totals.failed)
        self._metrics.set("patchsieve_actors", totals.actors, state="ready")
