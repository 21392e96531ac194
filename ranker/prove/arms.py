"""The arms of a measurement: everything, the product's selectors, and the controls at the same tokens or bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

Role = Literal["reference", "selector", "control"]
Axis = Literal["tokens", "bytes"]

FULL = "full"
SELECTORS = ("topk", "cluster", "nucleus", "budget")
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
QUADTREE, RESIZE, JPEG, FEWER = "quadtree", "resize", "jpeg", "fewer"
WHOLE_IMAGES = (RESIZE, JPEG, FEWER)
"""Controls that drop nothing of an image's area."""
CONTROLS = (*SCORED, QUADTREE, *WHOLE_IMAGES)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to spend less than everything, at a keep ratio; `axis`: the cost in which it equals the selectors."""

    name: str
    role: Role
    keep: float | None = None
    axis: Axis | None = None

    @property
    def id(self) -> str:
        """Name of its files."""
        return self.name if self.keep is None else f"{self.name}-{self.keep:g}"

    @property
    def title(self) -> str:
        """As messages say it."""
        return self.name if self.keep is None else f"{self.name} at {self.keep:.3g}"


def selector_arms(names: Sequence[str], keep: float) -> list[Arm]:
    """The product's selectors at a ratio."""
    return [Arm(name, "selector", keep) for name in names]


def token_controls(keep: float, names: Collection[str]) -> list[Arm]:
    """Those of the named controls that cost as many tokens."""
    return [Arm(name, "control", keep, "tokens") for name in (*SCORED, QUADTREE, RESIZE) if name in names]


def byte_controls(keep: float, names: Collection[str]) -> list[Arm]:
    """Those of the named controls that cost as many bytes as a selector at this ratio."""
    return [Arm(name, "control", keep, "bytes") for name in (JPEG, FEWER) if name in names]
