"""The images of several sources, ranked by a ranker where one is given.

Shape suffixes: N images, L patches of an image, V patches that are shown, P values of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchsieve.pipeline import storage
from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.gallery.from_shards import pictured_pruned, pictured_shards
from patchsieve.ranker.gallery.from_tables import pictured_tables
from patchsieve.ranker.gallery.photos import Photos
from patchsieve.ranker.gallery.pictured import Pictured
from patchsieve.ranker.gallery.sources import Source
from patchsieve.ranker.learning.agreement import Scores
from patchsieve.ranker.select.patch_scorer import PatchScorer, PatchSource, open_patch_source


def open_ranker(name: str) -> PatchSource:
    """A ranker or baseline that needs nothing else, in float32: pictures are few."""
    source = open_patch_source(name, fits=None, teacher=None, seed=0)
    return dataclasses.replace(source, precision="fp32") if source.ranker is not None else source


def gather(
    sources: Sequence[Source],
    *,
    count: int,
    ranker: PatchSource | None,
    photos: Photos | None,
    key: str | None = None,
    order: str | None = None,
) -> list[Pictured]:
    """At most `count` images of these tables, pruned sets and, where neither is given, shards; ranked by `ranker`.

    `key`, `order`: see `pictured_tables`. Raises UserError for what a source does not have, and for shards alone
    without a ranker.
    """
    tables = [source for source in sources if source.kind == "table"]
    pruned = [source for source in sources if source.kind == "pruned"]
    parts = max(1, bool(tables) + len(pruned))
    found: list[Pictured] = []
    if tables:
        opened = ScoreTables([source.path for source in tables])
        paths = {storage.absolute_url(source.path): source.shown for source in tables}
        found += pictured_tables(opened, paths, count=-(-count // parts), photos=photos, key=key, order=order)
    for source in pruned:
        found += pictured_pruned(source.path, count=count // parts or 1, photos=photos, key=key, order=order)
    if photos is not None and not tables and not pruned:
        shown = ", ".join(source.shown for source in sources if source.kind == "shards")
        if ranker is None:
            raise UserError(f"{shown} has no scores: name a ranker too, such as tiny")
        if order is not None:
            raise UserError(f"{shown}: scores of a ranker tell nothing across images, leave out --{order}")
        found += pictured_shards(
            photos, shown, grid=ranker.grid, size=ranker.image_size, count=count, key=key
        )
    return found if ranker is None else rank_pictured(found, ranker)


def rank_pictured(images: Sequence[Pictured], source: PatchSource) -> list[Pictured]:
    """The images with the ranker's scores, but for pruned ones, which have those that they were pruned by.

    Of an image that is not known whole only what is known is ranked, which baselines cannot do. Images of another grid
    stay without.
    """
    size = source.image_size
    fitting = [
        n for n, one in enumerate(images) if one.origin != "pruned" and one.pixels.shape[:2] == (size, size)
    ]
    fitting = [n for n in fitting if images[n].grid == source.grid and images[n].shown.any()]
    whole = [n for n in fitting if images[n].shown.all()]
    scores: dict[int, Scores] = {}
    scorer = PatchScorer(source, device=this_device(), batch_size=8 if source.ranker else 32)
    for at in range(0, len(whole), scorer.batch_size):
        part = whole[at : at + scorer.batch_size]
        found_NL = scorer.score([_patches(images[n], source) for n in part], [images[n].key for n in part])
        scores |= dict(zip(part, found_NL, strict=True))
    if source.ranker is not None:
        scores |= {n: _rank_shown(images[n], source) for n in fitting if n not in scores}
    return [
        dataclasses.replace(one, ranker=np.where(np.isfinite(scores[n]), scores[n], np.nan))
        if n in scores
        else one
        for n, one in enumerate(images)
    ]


def _patches(image: Pictured, source: PatchSource) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(image.pixels)).permute(2, 0, 1)
    return patchify(pixels[None], source.patch_size)[0]


@torch.inference_mode()
def _rank_shown(image: Pictured, source: PatchSource) -> Scores:
    """Scores of the patches whose pixels there are, NaN for the others."""
    assert source.ranker is not None
    at_V = torch.from_numpy(np.flatnonzero(image.shown))
    model = source.ranker.model.to("cpu")
    found = model.forward_visible(_patches(image, source)[at_V][None], at_V[None])[0]
    scores_L = np.full(len(image.shown), np.nan, np.float32)
    scores_L[at_V.numpy()] = found.float().numpy()
    return scores_L
