"""What the drift watch of the schedule says: fresh samples of one corpus, and images that are not like it.

What the ranker and its teacher make of each photo is measured once and kept, so that a run that is broken off goes on
where it was; of some also changed: inverted, inverted grey as X-rays are, and under the grain of a camera in the dark.
Then samples are drawn without repetition: one is the reference, which training held out, and one the new corpus, from
other photos. The share of draws in which a warning is given is to be small for fresh photos, and large for changed ones
that the ranker orders worse.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._common import show, write_json
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.schedule.drift import OfCeiling, has_fallen
from patchsieve.pipeline.scoring.api import load_teacher
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.images import read_evaluation_images
from patchsieve.ranker.evaluate.measure import ranker_scores
from patchsieve.ranker.evaluate.partitions import PartitionScorer
from patchsieve.ranker.learning.agreement import bootstrap, ceiling, spearman, spearman_brown
from patchsieve.ranker.model.checkpoint import load_ranker

Columns = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How often the drift watch warns."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Shards of photos that the ranker was not trained on."""
    ranker: str = "tiny"
    """The ranker."""
    teacher: str = "tiny"
    """Its teacher."""
    images: int = 240
    """Photos that are scored."""
    changed: int = 100
    """Photos that are scored again in each changed form."""
    reference: int = 100
    """Photos of the reference in each draw."""
    sample: int = 100
    """Photos of the new corpus in each draw."""
    draws: int = 100
    """Draws for each kind of photo."""
    partitions: int = 2
    """Partitions of the dense scores."""
    scores: Path = Path("bench-out/drift-scores.jsonl")
    """What was measured of each photo, a line each; a later run measures what is missing."""
    out: Path = Path("bench-out/drift.json")
    """Results as JSON."""


def unchanged(patches: Tensor) -> Tensor:
    """The patches as they are."""
    return patches


def inverted(patches: Tensor) -> Tensor:
    """uint8 patches `[I, L, P]`, their values turned over."""
    return 255 - patches


def x_ray(patches: Tensor) -> Tensor:
    """uint8 patches `[I, L, P]`, P pixels of three colours: inverted and without colours."""
    grey = patches.float().unflatten(2, (-1, 3)).mean(3, keepdim=True).expand(-1, -1, -1, 3)
    return (255 - grey.flatten(2)).to(patches.dtype)


def grainy(patches: Tensor) -> Tensor:
    """uint8 patches `[I, L, P]` under noise of a standard deviation of 50, the same for the same shape."""
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0)) * 50
    return (patches.float() + noise).clamp(0, 255).to(patches.dtype)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "fresh": unchanged,
    "inverted": inverted,
    "x_ray": x_ray,
    "grainy": grainy,
}
CHUNK = 10
"""Photos that are measured at once."""
BATCH = 4


class Scored:
    """Agreement of ranker and teacher on photos, and of one half of the teacher's scores with the other."""

    def __init__(self, options: Options) -> None:
        self._ranker, teacher = load_ranker(options.ranker), load_teacher(options.teacher)
        # Of a fixed size: measuring the best one takes longer than a chunk.
        self._scorer, self._partitions = PartitionScorer(teacher, batch_size=BATCH), options.partitions
        self._file = options.scores
        self._about = [self._ranker.digest, teacher.file.digest, options.partitions]
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        rows = [row for row in map(json.loads, lines) if row["about"] == self._about]
        self._known = {(row["form"], row["key"]): row["values"] for row in rows}
        self.images = read_evaluation_images(
            expand_shards(options.shards),
            self._ranker,
            image_field=IMAGE_FIELDS,
            limit=options.images,
            held_out_only=False,
        )

    def columns(self, form: str, count: int) -> Columns:
        """Of the first `count` photos in this form, float64 `[2, count]`; measures and keeps what is not known."""
        keys = self.images.keys[:count]
        missing = [place for place, key in enumerate(keys) if (form, key) not in self._known]
        for start in range(0, len(missing), CHUNK):
            self._measure(form, missing[start : start + CHUNK])
            print(f"{form}: {count - len(missing) + min(start + CHUNK, len(missing))} of {count}", flush=True)
        return np.array([self._known[form, key] for key in keys]).T

    def _measure(self, form: str, places: Sequence[int]) -> None:
        some = self.images.take(places)
        some = dataclasses.replace(some, patches=FORMS[form](some.patches))
        dense = measure_dense(
            some,
            self._scorer,
            masks="spread",
            aggregate="mean",
            max_partitions=self._partitions,
            reliability=1.0,
        )
        agreement = spearman(ranker_scores(self._ranker, some.patches), dense.dense)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as scratch:
            for key, *values in zip(
                some.keys, agreement.tolist(), dense.half_agreement.tolist(), strict=True
            ):
                self._known[form, key] = values
                row = {"about": self._about, "form": form, "key": key, "values": values}
                scratch.write(f"{json.dumps(row)}\n")


def of_ceiling(columns: Columns, places: Sequence[int] | NDArray[np.int64]) -> OfCeiling:
    """What `evaluate` tells of some of the images; `columns`: agreement, and of one half with the other, `[2, I]`."""
    found = bootstrap(list(columns[:, places]), lambda mine, half: mine / ceiling(spearman_brown(half)))
    return OfCeiling(**dataclasses.asdict(found))


def warned(options: Options, photos: Columns, other: Columns | None) -> float:
    """The share of the draws that gave a warning; `other` None: the new corpus is of the same photos."""
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(options.draws):
        order = rng.permutation(photos.shape[1])
        reference, rest = order[: options.reference], order[options.reference :]
        if other is None:
            new = of_ceiling(photos, rest[: options.sample])
        else:
            new = of_ceiling(other, rng.permutation(other.shape[1])[: options.sample])
        count += has_fallen(new, of_ceiling(photos, reference))
    return count / options.draws


def main(options: Options) -> None:
    """Measure what is missing, draw, and print the shares."""
    scored = Scored(options)
    images = len(scored.images)
    photos = scored.columns("fresh", images)
    found = {
        form: photos if form == "fresh" else scored.columns(form, min(options.changed, images))
        for form in FORMS
    }
    rows = [
        {
            "photos": form,
            "of_ceiling": of_ceiling(values, range(values.shape[1])).value,
            "warned": warned(options, photos, None if values is photos else values),
        }
        for form, values in found.items()
    ]
    told = [[str(row["photos"]), f"{row['of_ceiling']:.3f}", f"{row['warned']:.0%}"] for row in rows]
    show("drift watch", ["photos", "agreement / sqrt(rho)", "draws with a warning"], told)
    write_json({"drift": rows, "images": images}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
