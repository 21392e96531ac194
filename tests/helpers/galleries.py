"""What runs leave, small: a table of centre crops in which every patch has two scores, its ranker, a pruned set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.helpers.evaluations import ranker_of, small_teacher
from tests.helpers.photos import photo, write_shard
from tests.helpers.prune_runs import prune_config, prune_here
from tests.helpers.score_runs import score_config, score_here

HOSTILE = "<img src=x onerror=\"document['title']='owned'\">\x1b[31m\u202e"
"""A sample key that would run in a page and colour a terminal."""
PHOTOS = 6


@dataclasses.dataclass(frozen=True)
class Left:
    """Paths of shards, of two tables of them (all of a crop; one view of four random ones), a ranker, a pruned set."""

    shards: str
    table: str
    views: str
    ranker: str
    pruned: str


def leave(folder: Path) -> Left:
    """Score PHOTOS photos and prune them, without Ray; the first one has the hostile key."""
    names = [HOSTILE, *(f"photo-{number}" for number in range(1, PHOTOS))]
    shards = [
        write_shard(
            folder / "photos" / f"{half}.tar",
            [(names[n], {"jpg": photo(n, 60, 80), "cls": b"1"}) for n in range(half, PHOTOS, 2)],
        )
        for half in (0, 1)
    ]
    teacher = small_teacher(folder)
    ranker_of(folder / "ranker", teacher, step=3, agreement=0.5, validation="whole images")
    path = str(folder / "small-pixels-0.safetensors")
    score_here(
        score_config(
            shards, folder / "table", path, views="8", crop="center", masks="spread", mask_ratio=0.75
        )
    )
    score_here(score_config(shards, folder / "views", path, views="4", mask_ratio=0.75))
    prune_here(prune_config(shards, folder / "pruned", str(folder / "ranker"), keep=0.5))
    return Left(
        shards=str(folder / "photos"),
        table=str(folder / "table"),
        views=str(folder / "views"),
        ranker=str(folder / "ranker"),
        pruned=str(folder / "pruned"),
    )
