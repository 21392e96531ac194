"""What the ranker study compares: tables to score, references to measure against, and trainings, by name."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

from patchsieve.ranker.learning.losses import LossName
from patchsieve.ranker.model.ranker import Head

PUBLISHED_RATIO = 0.9
IMAGE_SHARE = 0.1
"""Of the training photos; every arm sees the same ones."""

SPREAD = "--masks spread"
TABLES: dict[str, str] = {
    # Views 0:1, 1:2, ... of one seed are the first, second, ... view of every image: together they are one table.
    "spread-0-1": f"{SPREAD} --views 0:1",
    "spread-1-2": f"{SPREAD} --views 1:2",
    "spread-2-4": f"{SPREAD} --views 2:4",
    "spread-4-8": f"{SPREAD} --views 4:8",
    "spread-8-16": f"{SPREAD} --views 8:16",
    # With the above 40 views of every image: more than 400 steps of 64 read, so that none is seen twice.
    "spread-16-40": f"{SPREAD} --views 16:40",
    "uniform-0-4": "--masks uniform --views 0:4",
    # About as many decoder passes as 4 views of 19 patches: 76.
    "r75-0-2": f"{SPREAD} --mask-ratio 0.75 --views 0:2",
    "r50-0-1": f"{SPREAD} --mask-ratio 0.5 --views 0:1",
    "encoder-0-4": f"{SPREAD} --removal encoder --views 0:4",
    "normalised-0-4": f"{SPREAD} --views 0:4 --teacher NORMALISED",
    # A view takes 0.3 of the FLOPs of exact scores: 3 views cost what one costs there, 13 what 4 cost.
    "frozen-0-3": f"{SPREAD} --estimator frozen --views 0:3",
    "frozen-3-4": f"{SPREAD} --estimator frozen --views 3:4",
    "frozen-4-13": f"{SPREAD} --estimator frozen --views 4:13",
}
"""Options of `patchsieve score` beside `--store view`."""

REFERENCES: dict[str, str] = {
    "spread": f"{SPREAD} --views 66",
    "uniform": "--masks uniform --views 44",
    "r75": f"{SPREAD} --mask-ratio 0.75 --views 16",
    "r50": f"{SPREAD} --mask-ratio 0.5 --views 8",
    "encoder": f"{SPREAD} --removal encoder --views 44",
    "normalised": f"{SPREAD} --views 22 --teacher NORMALISED",
}
"""Dense scores of the held-out photos: options beside `--crop center`."""

FOUR = ("spread-0-1", "spread-1-2", "spread-2-4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One training. `own`: the reference with the settings of its tables; all are measured against `spread` too.

    `lr` is the peak learning rate; `steps` of `batch` views. `weights`: see `initial_ranker`. `also`: references
    beside its own that it is measured against.
    """

    name: str
    group: str
    tables: tuple[str, ...] = FOUR
    own: str = "spread"
    also: tuple[str, ...] = ("spread",)
    context: Literal["visible", "full"] = "visible"
    head: Head = "token"
    loss: LossName = "list_mle"
    lr: float = 1e-3
    steps: int = 200
    batch: int = 64
    depth: int = 4
    weights: str = "random"

    @property
    def references(self) -> tuple[str, ...]:
        """All that it is measured against."""
        return tuple(dict.fromkeys((*self.also, self.own)))


LOSSES: tuple[LossName, ...] = ("list_mle", "list_mle_sub", "list_net", "rank_net", "mse", "focused")
RATES = (3e-4, 1e-3, 3e-3)


def arms() -> list[Arm]:
    """All of them; `base` is what the others differ from in one thing, at the best of three learning rates."""
    both = ("spread", "uniform")
    found = [
        Arm(name="base", group="base", also=both),
        Arm(name="masks uniform", group="masks", tables=("uniform-0-4",), own="uniform", also=both),
    ]
    for lr in RATES:
        found.append(Arm(name=f"head cls, rate {lr:g}", group="head", head="cls", lr=lr))
        found.append(Arm(name=f"context full, rate {lr:g}", group="context", context="full", lr=lr))
        found.append(Arm(name=f"weights teacher, rate {lr:g}", group="weights", weights="teacher", lr=lr))
    found += [
        Arm(name="removal encoder", group="removal", tables=("encoder-0-4",), own="encoder"),
        Arm(name="mask ratio 0.75", group="mask ratio", tables=("r75-0-2",), own="r75"),
        Arm(name="mask ratio 0.5", group="mask ratio", tables=("r50-0-1",), own="r50"),
    ]
    for loss, lr in itertools.product(LOSSES, RATES):
        if (loss, lr) != ("list_mle", 1e-3):
            found.append(Arm(name=f"loss {loss}, rate {lr:g}", group="loss", loss=loss, lr=lr))
    found += [
        Arm(name="steps 800", group="steps", steps=800),
        Arm(name="context full, steps 800", group="steps", context="full", steps=800),
        Arm(name="teacher normalised", group="teacher", tables=("normalised-0-4",), own="normalised"),
    ]
    tables = ("spread-0-1", "spread-1-2", "spread-2-4", "spread-4-8", "spread-8-16")
    for count, views in zip((1, 2, 3, 4, 5), (1, 2, 4, 8, 16), strict=True):
        found.append(Arm(name=f"views {views}", group="views", tables=tables[:count], steps=400))
    frozen = ("frozen-0-3", "frozen-3-4", "frozen-4-13")
    for count, views, steps in ((1, 3, 400), (2, 4, 200), (3, 13, 200)):
        found.append(
            Arm(
                name=f"frozen, {views} views, {steps} steps",
                group="estimator",
                tables=frozen[:count],
                steps=steps,
            )
        )
    found.append(Arm(name="views fresh", group="views fresh", tables=(*tables, "spread-16-40"), steps=400))
    return found
