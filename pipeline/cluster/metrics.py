"""Metrics of a run for Prometheus, through Ray: their names, and the one place that records them.

The driver records them all, from what its actors tell it, so that they agree with the summary, and what an actor
counted is not lost when it is killed. Ray exports `patchsieve_images` as `ray_patchsieve_images_total` and adds labels
of its own. docs/operations.md tells people what each means; deploy/grafana.json draws them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

Kind = Literal["counter", "gauge", "histogram"]
Command = Literal["score", "prune", "train"]

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 10800.0]
RUN = ("command", "run")
"""Labels of every metric. Not `job` and `node`, which Prometheus or those who run it set themselves."""


@dataclasses.dataclass(frozen=True)
class RunMetric:
    """A metric by its name within Ray, what it means, and its labels."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = RUN

    @property
    def exported(self) -> list[str]:
        """Its names in Prometheus."""
        endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
        return [f"ray_{self.name}{ending}" for ending in endings[self.kind]]

    @property
    def shown(self) -> str:
        """The name that people look for."""
        return self.exported[0].removesuffix("_bucket")


ON_HOST = (*RUN, "host")
OF_ACTOR = (*ON_HOST, "actor")
METRICS = {
    metric.name: metric
    for metric in (
        RunMetric("patchsieve_images", "counter", "Images read and decoded", ON_HOST),
        RunMetric("patchsieve_views", "counter", "Views scored", ON_HOST),
        RunMetric("patchsieve_read_bytes", "counter", "Bytes of shards read", ON_HOST),
        RunMetric(
            "patchsieve_worked_seconds", "counter", "Seconds in which teacher or ranker worked", ON_HOST
        ),
        RunMetric("patchsieve_waited_seconds", "counter", "Seconds in which it waited for data", ON_HOST),
        RunMetric("patchsieve_shards", "counter", "Shards and attempts by outcome", (*RUN, "outcome")),
        RunMetric("patchsieve_errors", "counter", "Samples that gave nothing, by stage", (*RUN, "stage")),
        RunMetric(
            "patchsieve_shard_seconds", "histogram", "Seconds from a shard's start to its commit", ON_HOST
        ),
        RunMetric("patchsieve_shards_left", "gauge", "Shards neither done nor failed"),
        RunMetric("patchsieve_actors", "gauge", "Actors by state", (*RUN, "state")),
        RunMetric("patchsieve_batch_size", "gauge", "Views or images in a batch", OF_ACTOR),
        RunMetric("patchsieve_gpu_memory_bytes", "gauge", "Most GPU memory that an actor has held", OF_ACTOR),
        RunMetric("patchsieve_train_step", "gauge", "Step of the newest measurement"),
        RunMetric("patchsieve_train_loss", "gauge", "Mean loss since the measurement before"),
        RunMetric("patchsieve_train_agreement", "gauge", "Agreement with the teacher on held-out images"),
        RunMetric(
            "patchsieve_train_waited_share", "gauge", "Share of its time that training waited for rows"
        ),
    )
}


@cache
def _instrument(name: str) -> Any:
    """Ray's object for a metric: one for each process."""
    metric = METRICS[name]
    if metric.kind == "histogram":
        return Histogram(name, metric.meaning, boundaries=SHARD_SECONDS, tag_keys=metric.labels)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](name, metric.meaning, tag_keys=metric.labels)


class RunMetrics:
    """Records the metrics of one run; Ray must be there, and exports them within ten seconds."""

    def __init__(self, command: Command, run_id: str) -> None:
        self._tags = {"command": command, "run": run_id}

    def count(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""
        if value > 0:
            _instrument(name).inc(value, tags=self._tags | labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        _instrument(name).set(value, tags=self._tags | labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        _instrument(name).observe(value, tags=self._tags | labels)

    def errors(self, faults: Mapping[str, int]) -> None:
        """Count the faults of a shard, which begin with their stage (see `count_reasons`)."""
        for reason, count in faults.items():
            stage = reason.partition(":")[0] if ":" in reason else "other"
            self.count("patchsieve_errors", count, stage=stage)
