"""What a prune run came to: counts, exit code, and the lines at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline.output.records import Record
from patchsieve.pipeline.runs.end import RunEnd, end_of_run
from patchsieve.pipeline.units import byte_size, counted, duration
from patchsieve.ranker.prune.ranking import PruneResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSummary(RunEnd):
    """The end of a prune run; what it adds covers this run. `coarse`: what thumbnails are worth in patches. `images`
    were pruned, `unscored` of them because the tables
    have no score of theirs, and `dropped` ones went whole. Times in seconds.
    """

    images: int
    kept: int
    coarse: int
    patches: int
    dropped: int
    unscored: int
    shard_bytes: int
    tar_bytes: int
    image_bytes_before: int
    image_bytes_after: int
    grown: int
    whole_bytes: int
    whole_bytes_pruned: int
    waited_share: float

    def lines(self, out: str) -> list[str]:
        """What a user reads at the end."""
        lines = [f"{self.first_line()}, in {out}"]
        if self.images:
            lines.append(
                f"this run: {counted(self.images, 'image')} in {duration(self.seconds)}, "
                f"{self.images / self.seconds:.1f} images/s, ranker waited {self.waited_share:.0%}"
            )
            lines.append(f"patches: {self.kept:,} of {self.patches:,} kept, {self.kept / self.patches:.1%}")
            if self.coarse:
                tokens = self.kept + self.coarse
                lines.append(
                    f"tokens: as many as {tokens:,} of {self.patches:,} patches, {tokens / self.patches:.1%}, "
                    f"{self.coarse:,} of them in thumbnails"
                )
        else:
            lines.append(f"this run: no image in {duration(self.seconds)}")
        if self.dropped or self.unscored:
            lines.append(
                f"whole images: {self.dropped:,} of {self.dropped + self.images:,} dropped for their score, "
                f"{self.unscored:,} kept without one"
            )
        if self.image_bytes_after:
            share = self.image_bytes_after / self.image_bytes_before
            lines.append(
                f"images: {byte_size(self.image_bytes_before)} -> {byte_size(self.image_bytes_after)}, {share:.1%}"
                f"{self._beside_reencoding()}"
            )
            if self.grown:
                lines.append(f"larger than before: {self.grown:,} of {self.images:,} images")
        if self.tar_bytes:
            lines.append(f"shards: {byte_size(self.shard_bytes)} -> {byte_size(self.tar_bytes)}")
        return lines + self.fault_lines("samples not pruned")

    def _beside_reencoding(self) -> str:
        """What dropping patches saves beside encoding alone, which may be most of it or more."""
        if not self.whole_bytes:
            return ""
        share = self.whole_bytes_pruned / self.whole_bytes
        return f"; {share:.1%} of the same crops, whole, in the same codec (by the first of each shard)"


def summarise_prune(
    *, before: Mapping[str, Record], results: Mapping[str, PruneResult], **run: Any
) -> PruneSummary:
    """Sum a prune run up. `run`: the rest of what `end_of_run` takes."""
    everything: list[Record | PruneResult] = [*before.values(), *results.values()]
    good = sum(item.samples - item.quarantined for item in everything)
    committed = [result for result in results.values() if result.failed is None]
    busy = sum(result.seconds for result in results.values())

    def total(name: str) -> int:
        return sum(getattr(result, name) for result in committed)

    return PruneSummary(
        **vars(end_of_run(before=before, results=results, good=good, **run)),
        images=total("images"),
        kept=total("kept"),
        coarse=total("coarse"),
        patches=total("patches"),
        dropped=total("dropped"),
        unscored=total("unscored"),
        shard_bytes=total("shard_bytes"),
        tar_bytes=total("tar_bytes"),
        image_bytes_before=total("image_bytes_before"),
        image_bytes_after=total("image_bytes_after"),
        grown=total("grown"),
        whole_bytes=total("whole_bytes"),
        whole_bytes_pruned=total("whole_bytes_pruned"),
        waited_share=sum(result.waited_s for result in results.values()) / busy if busy else 0.0,
    )
