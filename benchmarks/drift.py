"""What the drift watch of the schedule says: fresh samples of one corpus, and images that are not like it.

The teacher's dense scores of all photos are measured once, and of as many changed ones: inverted, and inverted grey as
X-rays are. Then samples are drawn without repetition: one is the reference, which training held out, and one the new
corpus, from other photos. The share of draws in which a warning is given is to be small for fresh photos, and large for
changed ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from torch import Tensor

from benchmarks._common import show, write_json
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.schedule.drift import OfCeiling, has_fallen
from patchsieve.pipeline.scoring.api import load_teacher
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.evaluate.dense import measure_dense
from patchsieve.ranker.evaluate.images import EvaluationImages, read_evaluation_images
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
    images: int = 400
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
    out: Path = Path("bench-out/drift.json")
    """Results as JSON."""


def inverted(patches: Tensor) -> Tensor:
    """uint8 patches `[I, L, P]`, their values turned over."""
    return 255 - patches


def x_ray(patches: Tensor) -> Tensor:
    """uint8 patches `[I, L, P]`, P pixels of three colours: inverted and without colours."""
    grey = patches.float().unflatten(2, (-1, 3)).mean(3, keepdim=True).expand(-1, -1, -1, 3)
    return (255 - grey.flatten(2)).to(patches.dtype)


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
    """Score, draw, and print the shares."""
    ranker, teacher = load_ranker(options.ranker), load_teacher(options.teacher)
    images = read_evaluation_images(
        expand_shards(options.shards),
        ranker,
        image_field=IMAGE_FIELDS,
        limit=options.images,
        held_out_only=False,
    )
    scorer = PartitionScorer(teacher)

    def columns(some: EvaluationImages) -> Columns:
        dense = measure_dense(
            some,
            scorer,
            masks="spread",
            aggregate="mean",
            max_partitions=options.partitions,
            reliability=0.999,
        )
        return np.stack([spearman(ranker_scores(ranker, some.patches), dense.dense), dense.half_agreement])

    photos = columns(images)
    some = images.take(range(min(options.changed, len(images))))
    forms = {"inverted": inverted, "x_ray": x_ray}
    found = {
        name: columns(dataclasses.replace(some, patches=change(some.patches)))
        for name, change in forms.items()
    }
    rows = [
        {
            "photos": name,
            "of_ceiling": of_ceiling(values, range(values.shape[1])).value,
            "warned": warned(options, photos, None if values is photos else values),
        }
        for name, values in {"fresh": photos, **found}.items()
    ]
    told = [[str(row["photos"]), f"{row['of_ceiling']:.3f}", f"{row['warned']:.0%}"] for row in rows]
    show("drift watch", ["photos", "agreement / sqrt(rho)", "draws with a warning"], told)
    write_json({"drift": rows, "images": len(images)}, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
