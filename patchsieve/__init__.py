"""Ranks the patches of images by how much content they carry: pseudo-labels from a masked autoencoder.

    import patchsieve
    teacher = patchsieve.load_teacher("tiny")
    scores = patchsieve.score_images([image], teacher)
    table = patchsieve.read_scores("out")
    ranker = patchsieve.load_ranker("ranker")
    ranks = patchsieve.rank_images([image], ranker)
    dataset = patchsieve.PrunedDataset("pruned/shards/*.tar")
    patchsieve.draw_heat_map(image, ranks[0])

Importing this package loads neither torch nor ray: each name of the API is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchsieve.jobs.api import pack, prune, score, train
    from patchsieve.pipeline.pruned.dataset import PrunedDataset
    from patchsieve.pipeline.scoring.aggregate import dense_scores
    from patchsieve.pipeline.scoring.api import load_teacher, score_images
    from patchsieve.pipeline.tables.reader import read_scores
    from patchsieve.ranker.gallery.sheet import draw_heat_map, draw_sheet
    from patchsieve.ranker.model.api import rank_images
    from patchsieve.ranker.model.checkpoint import load_ranker

__version__ = "0.1.0"
__all__ = [
    "PrunedDataset",
    "__version__",
    "dense_scores",
    "draw_heat_map",
    "draw_sheet",
    "load_ranker",
    "load_teacher",
    "pack",
    "prune",
    "rank_images",
    "read_scores",
    "score",
    "score_images",
    "train",
]

_API = {
    "PrunedDataset": "patchsieve.pipeline.pruned.dataset",
    "dense_scores": "patchsieve.pipeline.scoring.aggregate",
    "draw_heat_map": "patchsieve.ranker.gallery.sheet",
    "draw_sheet": "patchsieve.ranker.gallery.sheet",
    "load_ranker": "patchsieve.ranker.model.checkpoint",
    "load_teacher": "patchsieve.pipeline.scoring.api",
    "pack": "patchsieve.jobs.api",
    "prune": "patchsieve.jobs.api",
    "rank_images": "patchsieve.ranker.model.api",
    "read_scores": "patchsieve.pipeline.tables.reader",
    "score": "patchsieve.jobs.api",
    "score_images": "patchsieve.pipeline.scoring.api",
    "train": "patchsieve.jobs.api",
}


if not (Path(__file__).parent / "pipeline").is_dir():
    # An archive or a Windows checkout without symbolic links.
    raise ImportError(
        f"{Path(__file__).parent} holds no folder pipeline, to which a symbolic link should lead: "
        "`make install` makes the links, and so does `git config core.symlinks true && git checkout -- patchsieve`"
    )

if not TYPE_CHECKING:  # a type checker would take every name for one of the API

    def __getattr__(name: str) -> Any:
        """Import a name of the public API on first use."""
        if name not in _API:
            raise AttributeError(f"module 'patchsieve' has no attribute {name!r}")
        value = getattr(import_module(_API[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
