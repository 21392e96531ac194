"""The arms of a measurement: everything, the product's selectors, and the controls at the same tokens or bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

Role = Literal["reference", "selector", "control"]
Axis = Literal["tokens", "bytes"]

FULL, THUMBNAIL = "full", "thumbnail"
SELECTORS = ("topk", "window", "region", "cluster", "nucleus", "budget")
SCORED = {
    "random": "random",
    "grid": "grid",
    "centre": "centre",
    "edge": "edge",
    "variance": "variance",
    "gradient": "gradient",
    "position": "position",
    "ridge": "ridge",
    "attention": "attention",
    "dpc": "cluster",
}
"""Controls that keep the highest scores of a baseline, by its name."""
FITTED = ("position", "ridge")
"""Those whose baseline has to be stored with the ranker."""
RANDOM, QUADTREE, RESIZE, JPEG, FEWER = "random", "quadtree", "resize", "jpeg", "fewer"
WHOLE_IMAGES = (RESIZE, JPEG, FEWER)
"""Controls that drop nothing of an image's area."""
CONTROLS = (*SCORED, QUADTREE, *WHOLE_IMAGES)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend less than everything.

    `keep`: share of the patches that it may cost, None for references; `axis`: the cost in which a control equals the
    selectors; `background`: side in pixels of the thumbnail beside its patches, or that it consists of, 0 for none.
    """

    way: str
    role: Role
    keep: float | None = None
    axis: Axis | None = None
    background: int = 0

    @property
    def name(self) -> str:
        """The way, and its thumbnail."""
        return f"{self.way}+{self.background}" if self.background else self.way

    @property
    def id(self) -> str:
        """Name of its files."""
        return self.name if self.keep is None else f"{self.name}-{self.keep:g}"

    @property
    def title(self) -> str:
        """As messages say it."""
        return self.name if self.keep is None else f"{self.name} at {self.keep:.3g}"


@dataclasses.dataclass(frozen=True)
class Trial:
    """An arm, measured once. `seed`: of what its learning draws, None where it draws nothing."""

    arm: Arm
    seed: int | None = None

    @property
    def id(self) -> str:
        """Name of its files."""
        return self.arm.id if self.seed is None else f"{self.arm.id}-seed{self.seed}"

    @property
    def title(self) -> str:
        """As messages say it."""
        return self.arm.title if self.seed is None else f"{self.arm.title}, seed {self.seed}"


def selector_names(background: int) -> list[str]:
    """All selectors, without a thumbnail and, if there is to be one, with it."""
    return [*SELECTORS, *(f"{way}+{background}" for way in SELECTORS if background)]


def selector_arm(name: str, keep: float) -> Arm:
    """The product's selector of this name at a ratio."""
    way, _, background = name.partition("+")
    return Arm(way, "selector", keep, background=int(background or 0))


def references(background: int) -> list[Arm]:
    """What selectors are seen beside, but not compared with: everything, and the thumbnail alone."""
    whole = [Arm(FULL, "reference")]
    return [*whole, Arm(THUMBNAIL, "reference", background=background)] if background else whole


def token_controls(keep: float, names: Collection[str], background: int) -> list[Arm]:
    """Those of the named controls that cost as many tokens; with a thumbnail also random patches beside it."""
    ways = [name for name in (*SCORED, QUADTREE, RESIZE) if name in names]
    arms = [Arm(way, "control", keep, "tokens") for way in ways]
    mixed = Arm(RANDOM, "control", keep, "tokens", background)
    return [*arms, mixed] if background and RANDOM in names else arms


def byte_controls(keep: float, names: Collection[str]) -> list[Arm]:
    """Those of the named controls that cost as many bytes as a selector at this ratio."""
    return [Arm(name, "control", keep, "bytes") for name in (JPEG, FEWER) if name in names]
