"""What a prune run says at its end."""

from __future__ import annotations

from typing import Any

from patchsieve.ranker.prune.ranking import PruneResult
from patchsieve.ranker.prune_on_ray.summary import summarise_prune


def lines(**changes: Any) -> str:
    counts = {
        "samples": 10,
        "quarantined": 0,
        "images": 10,
        "patches": 1960,
        "kept": 980,
        "shard_bytes": 2000,
    }
    counts |= {"tar_bytes": 1500, "image_bytes_before": 1000, "image_bytes_after": 900}
    result = PruneResult(
        shard_id="a",
        faults={},
        damaged=False,
        failed=None,
        waited_s=0.0,
        seconds=1.0,
        **{**counts, **changes},
    )
    summary = summarise_prune(
        before={},
        results={"a": result},
        run_id="run",
        state="complete",
        names={"a": "a.tar"},
        failures={},
        seconds=1.0,
        devices=(),
        taken_out={},
        max_bad=1.0,
        salvage=False,
        stopped_code=None,
    )
    return "\n".join(summary.lines("out"))


def test_the_saving_stands_beside_that_of_encoding_alone() -> None:
    said = "images: 1 kB -> 900 B, 90.0%; 55.0% of the same crops, whole, in the same codec"
    assert said in lines(whole_bytes=400, whole_bytes_pruned=220)
    assert "in the same codec" not in lines()


def test_images_that_grew_are_counted() -> None:
    assert "larger than before: 3 of 10 images" in lines(grown=3)
    assert "larger than before" not in lines()
