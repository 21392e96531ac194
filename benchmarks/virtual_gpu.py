"""How much of a fast GPU the code around it would use: a pretended one that takes so many views a second.

The device is a clock: batches queue up on it and each takes its share of a second, in which this process is free. All
else is what an actor runs (`ShardScoring`, two shards in hand), but for decoding, whose views lie ready: a machine
without a GPU has not the cores for it either. What is lost is lost to Python, compression and writing.

Busy is the share of the time from the first batch to the last in which the device had work. The rate counts to the
commit of the last table, which comes once in a run, however long that is. Goals: busy for 0.95 of the time at 2,200
views a second in batches of 32, for 0.9 at 5,000.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks._common import show, write_json
from benchmarks._photos import pack_shard, photo_files
from benchmarks._teachers import save_random_teacher
from benchmarks.score_path import score_shards
from patchsieve.pipeline.compute.device import keep_freed_memory
from patchsieve.pipeline.compute.launch import Launched, Stamp
from patchsieve.pipeline.output.folder import OutputFolder, new_run_id
from patchsieve.pipeline.row_config import DECODER
from patchsieve.pipeline.score.config import ScoreConfig
from patchsieve.pipeline.score.shard import ShardScoring, teacher_record
from patchsieve.pipeline.score.view_feed import views_here
from patchsieve.pipeline.scoring.views import View
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.schema import SCORES

SHARDS = 3
PHOTOS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of what feeds a GPU, without one."""

    rates: tuple[int, ...] = (2200, 5000)
    """Views a second of the pretended GPU, a measurement each."""
    batch_size: int = 32
    """Views of a batch."""
    seconds: float = 6.0
    """Work of the GPU in a round."""
    rounds: int = 3
    """Rounds; medians are reported."""
    out: Path = Path("bench-out/virtual_gpu.json")
    """Results as JSON."""


class Moment(Stamp):
    """A moment of the pretended device, known beforehand."""

    def __init__(self, at: float) -> None:
        super().__init__(torch.device("cpu"))
        self._reached = at

    def wait(self) -> None:
        time.sleep(max(0.0, self._reached - time.monotonic()))


class VirtualGpu:
    """Stands in for a `Scorer`: batches take their time one after the other, and no processor."""

    device = torch.device("cpu")

    def __init__(self, rate: float, batch_size: int) -> None:
        self.batch_size, self._rate = batch_size, rate
        self._first: float | None = None
        self._free = self._worked = 0.0

    def launch(self, pixels: Tensor, visible: Tensor, _starts: Tensor | None = None) -> Launched:
        """Queue a batch."""
        began, seconds = max(time.monotonic(), self._free), len(pixels) / self._rate
        self._first = began if self._first is None else self._first
        self._free, self._worked = began + seconds, self._worked + seconds
        return Launched(torch.rand(visible.shape), Moment(began), Moment(self._free))

    def share(self) -> float:
        """Of the time from its first batch to its last, that it had work."""
        assert self._first is not None, "it had batches"
        return self._worked / (self._free - self._first)


def run_rate(rate: int, options: Options, folder: Path, files: list[bytes]) -> dict[str, Any]:
    """Measure at one rate; returns what the JSON holds."""
    path, teacher = save_random_teacher("toy", folder)
    rows = ScoreConfig(shards=("none yet",), out="none yet", teacher=path, views="4").rows(
        size=teacher.config.image_size, precision="fp32", decoder=DECODER
    )
    make = views_here(rows, teacher.config.patch_size)
    ready = [make(str(number), data) for number, data in enumerate(files)]

    def views_of(key: str, _data: bytes) -> list[View]:
        return [dataclasses.replace(view, sample_key=key) for view in ready[int(key) % len(ready)]]

    count = round(rate * options.seconds / 4 / SHARDS)
    urls = [
        pack_shard(folder / f"{rate}-{number}.tar", files, count, start=number * count)
        for number in range(SHARDS)
    ]
    rates, shares = [], []
    for number in range(options.rounds):
        gpu = VirtualGpu(rate, options.batch_size)
        scoring: Any = ShardScoring(
            gpu,
            teacher_record(teacher),
            rows,
            OutputFolder(str(folder / f"out-{rate}-{number}"), SCORES, run_id=new_run_id()),
            provenance={},
            threads=1,
        )
        scoring._views_of = views_of
        rates.append(score_shards(scoring, list(expand_shards(urls)))["views_per_second"])
        shares.append(gpu.share())
        scoring.close()
    return {"views_per_second": rates, "shares": shares, "share": statistics.median(shares)}


def main(options: Options) -> None:
    """Measure, print a table, write the JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()
    files = list(itertools.islice(photo_files((), PHOTOS), PHOTOS))
    with tempfile.TemporaryDirectory() as folder:
        results = {rate: run_rate(rate, options, Path(folder), files) for rate in options.rates}
    show(
        f"a pretended GPU, batches of {options.batch_size}, decoding left out",
        ["views/s it could", "to the last commit", "busy"],
        [
            [str(rate), f"{statistics.median(found['views_per_second']):,.0f}", f"{found['share']:.0%}"]
            for rate, found in results.items()
        ],
    )
    write_json({"virtual_gpu": results}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
