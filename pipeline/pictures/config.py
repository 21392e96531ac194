"""Configuration of `patchsieve demo`; imports neither torch nor ray, so that `--help` answers at once."""

from __future__ import annotations

import dataclasses

from patchsieve.pipeline.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Score photographs with the bundled teacher on two actors, draw what it found, and train a small ranker on it."""

    out: str = "demo-out"
    """Output folder (any fsspec URL). Run again on it to resume."""
    images: str | None = None
    """A folder with photos of your own; by default those that scikit-image ships."""
    teacher: str = "tiny"
    """Any teacher of `patchsieve score` that predicts pixels."""
    views: str = "11"
    """Views per sample; 11 show every patch once, 22 twice, and so on."""
    samples: int = 80
    """Samples made of the photos: each photo whole, and three to nine overlapping crops of it."""
    max_actors: int = 2
    """At most this many actors."""

    def __post_init__(self) -> None:
        if self.samples < 4:
            raise UserError(
                f"--samples is {self.samples}, must be at least 4: a photo whole, and three crops"
            )
