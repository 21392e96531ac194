"""Ranks the patches of images by how much content they carry: pseudo-labels from a masked autoencoder.

    import patchsieve
    teacher = patchsieve.load_teacher("tiny")
    scores = patchsieve.score_images([image], teacher)
    table = patchsieve.read_scores("out")
    ranker = patchsieve.load_ranker("ranker")
    ranks = patchsieve.rank_images([image], ranker)
    dataset = patchsieve.PrunedDataset("pruned/shards/*.tar")

Importing this package loads neither torch nor ray: each name of the API is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchsieve.pipeline.api import load_teacher, score_images
    from patchsieve.pipeline.pruned import PrunedDataset
    from patchsieve.pipeline.table_reader import read_scores
    from patchsieve.ranker.api import load_ranker, rank_images

__version__ = "0.1.0"
__all__ = [
    "PrunedDataset",
    "__version__",
    "load_ranker",
    "load_teacher",
    "rank_images",
    "read_scores",
    "score_images",
]

_API = {
    "PrunedDataset": "patchsieve.pipeline.pruned",
    "load_ranker": "patchsieve.ranker.api",
    "load_teacher": "patchsieve.pipeline.api",
    "rank_images": "patchsieve.ranker.api",
    "read_scores": "patchsieve.pipeline.table_reader",
    "score_images": "patchsieve.pipeline.api",
}


def _checkout_of(package: Path) -> Path | None:
    """The root of the checkout that the package folder lies in, or None for an installed package.

    An installed package has its sub-packages inside and never looks beside itself, where a `pipeline` or
    `jobs` would be another distribution's.
    """
    if (package / "pipeline").exists():
        return None
    root = package.parent
    try:
        project = (root / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    return root if '\nname = "patchsieve"\n' in project else None


if (_checkout := _checkout_of(Path(__file__).resolve().parent)) is not None:
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    """Import a name of the public API on first use."""
    if name not in _API:
        raise AttributeError(f"module 'patchsieve' has no attribute {name!r}")
    value = getattr(import_module(_API[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
