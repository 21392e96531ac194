"""The teacher by itself, as fast as it goes: what whole jobs are compared with."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import torch

from benchmarks._common import show
from patchsieve.pipeline.compute.device import keep_freed_memory, this_device
from patchsieve.pipeline.row_config import RowConfig
from patchsieve.pipeline.score.view_feed import prepare_views, views_here
from patchsieve.pipeline.scoring.batch import batch_of
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.scoring.views import View
from patchsieve.pipeline.shards.reader import Sample
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile
from patchsieve.pipeline.teacher.ready import choose_precision

DEVICE = this_device().type


class TeacherAlone:
    """What `ScoringActor` makes of a teacher, fed from memory."""

    def __init__(self, file: TeacherFile, rows: RowConfig, precision: str, batch_size: int | None) -> None:
        keep_freed_memory()
        model, device = build_teacher(file, device=DEVICE), torch.device(DEVICE)
        self.precision = choose_precision(model, device) if precision == "auto" else precision
        self._rows, self._patch_size = rows, file.config.patch_size
        self.scorer = Scorer(
            model, precision=self.precision, device=device, batch_size=batch_size, compile=True
        )
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def settings(self) -> dict[str, Any]:
        """What was chosen."""
        return {
            "precision": self.precision,
            "batch_size": self.scorer.batch_size,
            "threads": torch.get_num_threads(),
        }

    def load(self, files: list[bytes]) -> float:
        """Prepare batches of views of these photos; returns the seconds that preparing a view takes one core."""
        samples = [
            Sample(f"{number:08d}", {"jpg": file}, {"jpg": f"{number:08d}.jpg"})
            for number, file in enumerate(files)
        ]
        views_of = views_here(self._rows, self._patch_size)
        prepare_views(samples[0], self._rows.image_field, views_of)
        started = time.thread_time()
        prepared = [prepare_views(sample, self._rows.image_field, views_of) for sample in samples]
        views = [view for item in prepared if isinstance(item, list) for view in item]
        seconds = (time.thread_time() - started) / len(views)
        size = self.scorer.batch_size
        endless: itertools.cycle[View] = itertools.cycle(views)
        for _ in range(max(2, min(32, len(views) // size))):
            batch = list(itertools.islice(endless, size))
            pixels, visible, _ = batch_of(batch, self._rows)
            self._batches.append((pixels, visible))
        return seconds

    def run(self, seconds: float) -> float:
        """Score for so long, a batch at the least; views per second."""
        count, started = 0, time.perf_counter()
        ahead = self.scorer.launch(*self._batches[-1])
        for pixels, visible in itertools.cycle(self._batches):
            launched = self.scorer.launch(pixels, visible)
            count += len(ahead.result())
            ahead = launched
            if time.perf_counter() - started >= seconds:
                break
        count += len(ahead.result())
        return count / (time.perf_counter() - started)


def compare(
    chosen: dict[str, Any], decoding: float, teachers: list[float], jobs: list[dict[str, float]]
) -> dict[str, Any]:
    """What the JSON holds of a teacher: its settings, and jobs beside the teacher alone, round by round.

    `decoding`: core seconds of a view until the teacher has it. On a processor the same cores do both; a GPU leaves
    them to the decoders.
    """
    ratios = [job["views_per_second"] / alone for job, alone in zip(jobs, teachers, strict=True)]
    taken = statistics.median(teachers) * decoding / chosen["threads"] if DEVICE == "cpu" else 0.0
    return {
        **chosen,
        "teacher_views_per_second": teachers,
        "job": jobs,
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "decode_core_ms_per_view": 1000 * decoding,
        "ratio_if_cores_are_shared_without_loss": 1 / (1 + taken),
    }


def show_comparison(what: str, results: dict[str, dict[str, Any]]) -> None:
    """Print them as a table, a line per teacher."""
    show(
        f"Views per second of the teacher alone and of {what}, {DEVICE};\n"
        "bound: the ratio if decoding took its own time and nothing else did",
        ["teacher", "type", "batch", "threads", "alone/s", "job/s", "ratio", "from-to", "bound", "waited"],
        [
            [
                size,
                found["precision"],
                str(found["batch_size"]),
                str(found["threads"]),
                f"{statistics.median(found['teacher_views_per_second']):.2f}",
                f"{statistics.median(job['views_per_second'] for job in found['job']):.2f}",
                f"{found['ratio']:.3f}",
                f"{min(found['ratios']):.3f}-{max(found['ratios']):.3f}",
                f"{found['ratio_if_cores_are_shared_without_loss']:.3f}",
                f"{statistics.median(job['waited_share'] for job in found['job']):.1%}",
            ]
            for size, found in results.items()
        ],
    )
