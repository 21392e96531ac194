"""Whether leaving out 2 x 2 patches at once makes better scores than leaving out one: a probe's answer at equal cost.

A view of blocks shows a tenth of the grid as 2 x 2 patches that lie apart, and each of them is left out whole before
the decoder: a quarter of the passes. Every second partition lies one patch further down and right, where the rim stays
without. Scores of both kinds choose what stays of train photos, and folds of these validate a probe on it; no test
split is read.

    python -m benchmarks.block_removal TRAIN_SHARDS ... --work DIR

Scores are kept in DIR; writes DIR/block-removal.json.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks._common import show, span, write_json
from benchmarks._kept_arrays import kept_in
from patchsieve.pipeline.images.masks import draw_masks
from patchsieve.pipeline.images.patches import hidden_positions, normalise, take_patches
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import FROZEN_TOKENS, IMAGE_FIELDS
from patchsieve.pipeline.scoring.aggregate import dense_scores
from patchsieve.pipeline.scoring.cost import gflop_per_view
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.evaluate.report_parts import plain
from patchsieve.ranker.prove.encoders import TeacherEncoder
from patchsieve.ranker.prove.intervals import difference, interval
from patchsieve.ranker.prove.photos import LabelField, LabelledPhotos, class_names, read_photos
from patchsieve.ranker.prove.probe import choose_penalty
from patchsieve.ranker.prove.views import Canvas, kept_view
from patchsieve.ranker.select import regions, selection

SIDE, BLOCKS = 2, 5
"""Patches along a block, and blocks that a view shows: 20 of 196 patches, as a view of single ones shows 19."""

_FOLDS, _BATCH = 5, 11
Dense = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Patch-wise against block-wise removal, judged by a probe."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Labelled train shards."""
    work: Path
    """Folder of what is kept and of the results."""
    label: str = "cls"
    """Field with the label."""
    teacher: str = "tiny"
    """Teacher that scores, and whose encoder is the probe's."""
    classes: int = 12
    """Labels to take, those with most photos."""
    photos: int = 20
    """Photos of each."""
    block_partitions: int = 1
    """Partitions of blocks; of single patches one is scored, by the frozen estimator."""
    keep: tuple[float, ...] = (0.25, 0.5)
    """Shares of the patches that stay."""


def patch_scores(model: MaskedAutoencoder, key: str, patches_LP: torch.Tensor, scorer: Scorer) -> Dense:
    """A score for each patch, float32 `[L]`, from one partition of single patches."""
    positions, views = model.config.positions, -(-model.config.positions // scorer.visible)
    visible_KV = draw_masks(
        0, key, range(views), grid=model.config.grid, count=scorer.visible, masks="spread", partition=True
    )
    starts = np.stack([KeyedRandom(0, key, "frozen", view).uniform(scorer.visible) for view in range(views)])
    scores = scorer.score(
        patches_LP.expand(views, -1, -1), torch.from_numpy(visible_KV), torch.from_numpy(starts)
    )
    return dense_scores(visible_KV, scores.numpy(), positions)


def block_views(key: str, grid: int, partition: int) -> NDArray[np.int64]:
    """Positions of the blocks of each view of a partition, int64 `[views, blocks, SIDE * SIDE]`."""
    shift = partition % 2
    across = (grid - shift) // SIDE
    views = -(-(across**2) // BLOCKS)
    blocks_VB = draw_masks(
        partition, key, range(views), grid=across, count=BLOCKS, masks="spread", partition=True
    )
    rows, columns = np.divmod(blocks_VB.astype(np.int64), across)
    corner = (rows * SIDE + shift) * grid + columns * SIDE + shift
    offsets = (np.arange(SIDE)[:, None] * grid + np.arange(SIDE)).ravel()
    found: NDArray[np.int64] = corner[..., None] + offsets
    return found


@torch.inference_mode()
def block_changes(model: MaskedAutoencoder, patches_LP: torch.Tensor, views_KBS: NDArray[np.int64]) -> Dense:
    """How far the hidden patches move when each block is left out before the decoder, float32 `[views, blocks]`."""
    count, blocks, size = views_KBS.shape
    visible_KV = torch.from_numpy(views_KBS.reshape(count, -1))
    hidden_KH = hidden_positions(visible_KV, model.config.positions)
    pixels = take_patches(patches_LP.expand(count, -1, -1), visible_KV)
    latent = model.encode(normalise(pixels), visible_KV)
    hidden = hidden_KH.shape[1]
    whole = model.decode(latent, visible_KV, hidden_KH, hidden)
    changes = []
    for block in range(blocks):
        stays = torch.ones(blocks * size, dtype=torch.bool)
        stays[block * size : (block + 1) * size] = False
        tokens = torch.cat([latent[:, :1], latent[:, 1:][:, stays]], dim=1)
        without = model.decode(tokens, visible_KV[:, stays], hidden_KH, hidden)
        changes.append((without - whole).abs().mean(dim=(1, 2)))
    return torch.stack(changes, dim=1).numpy()


def block_scores(model: MaskedAutoencoder, key: str, patches_LP: torch.Tensor, partitions: int) -> Dense:
    """A score for each patch, float32 `[L]`: that of its blocks; the rim has those of every second partition alone."""
    visible, scores = [], []
    for partition in range(partitions):
        views_KBS = block_views(key, model.config.grid, partition)
        changes_KB = block_changes(model, patches_LP, views_KBS)
        visible.append(views_KBS.reshape(len(views_KBS), -1))
        scores.append(np.repeat(changes_KB, views_KBS.shape[2], axis=1))
    return dense_scores(np.concatenate(visible), np.concatenate(scores), model.config.positions)


def block_gflop(model: MaskedAutoencoder, grid: int, partitions: int) -> float:
    """Nominal cost of an image's block scores in 10^9 operations: a view has an anchor and a pass for each block."""
    visible = BLOCKS * SIDE**2
    each = gflop_per_view(model.config, visible, "decoder") / (visible + 1)
    views = sum(-(-(((grid - number % 2) // SIDE) ** 2) // BLOCKS) for number in range(partitions))
    return views * each * (BLOCKS + 1)


def accuracy(
    features_ND: NDArray[np.float32], labels_N: NDArray[np.int64], classes: int
) -> NDArray[np.bool_]:
    """Which photos a probe names that was fitted to other folds, with one of those for its penalty: bool `[N]`."""
    fold_N = np.arange(len(labels_N)) % _FOLDS
    right_N = np.zeros(len(labels_N), np.bool_)
    for fold in range(_FOLDS):
        tested_N, chosen_on_N = fold_N == fold, fold_N == (fold + 1) % _FOLDS
        _, probe = choose_penalty(
            features_ND,
            labels_N,
            fitted_N=~(tested_N | chosen_on_N),
            chosen_on_N=chosen_on_N,
            classes=classes,
        )
        right_N[tested_N] = probe.predict(features_ND[tested_N]) == labels_N[tested_N]
    return right_N


def chosen_photos(photos: LabelledPhotos, classes: int, count: int) -> LabelledPhotos:
    """The first `count` photos of the labels with most of them, label after label in turns."""
    names = {name for name, _ in Counter(photos.names).most_common(classes)}
    seen: Counter[str] = Counter()
    wanted = np.zeros(len(photos), np.bool_)
    for place, name in enumerate(photos.names):
        wanted[place] = name in names and seen[name] < count
        seen[name] += 1
    return photos.take(wanted)


def measured(options: Options) -> dict[str, Any]:
    """Score by both kinds, select, encode, validate."""
    teacher = read_teacher(options.teacher)
    model, grid, size = build_teacher(teacher), teacher.config.grid, teacher.config.patch_size
    read = read_photos(
        expand_shards(options.shards),
        "train",
        LabelField(options.label, {}),
        grid=grid,
        patch_size=size,
        image_field=IMAGE_FIELDS,
        limit=None,
    )
    photos = chosen_photos(read, options.classes, options.photos)
    names = class_names(photos)
    print(f"{len(photos)} photos of {len(names)} classes", flush=True)
    scorer = Scorer(model, batch_size=_BATCH, frozen_tokens=FROZEN_TOKENS)
    pairs = list(zip(photos.keys, photos.patches, strict=True))
    dense = {
        "patches": kept_in(
            options.work / "patches.npz",
            lambda: {"dense": np.stack([patch_scores(model, *pair, scorer) for pair in pairs])},
        )["dense"],
        "blocks": kept_in(
            options.work / f"blocks-{options.block_partitions}.npz",
            lambda: {
                "dense": np.stack([block_scores(model, *pair, options.block_partitions) for pair in pairs])
            },
        )["dense"],
        "random": np.stack([KeyedRandom(0, key, "random").uniform(grid**2) for key in photos.keys]).astype(
            np.float32
        ),
    }
    canvas, encoder = Canvas(grid, size, ImageCodec("jpeg", 90)), TeacherEncoder(model, torch.device("cpu"))
    labels_N = photos.labels(names)
    right: dict[tuple[str, str, float], NDArray[np.bool_]] = {}
    for keep in options.keep:
        count = selection.keep_count(grid**2, keep)
        for kind, dense_NL in dense.items():
            masks = {"topk": selection.topk(dense_NL, count)}
            if kind != "random":
                masks["window"] = regions.window(dense_NL, count)
            for way, keep_NL in masks.items():
                views = [kept_view(*pair, canvas) for pair in zip(photos.patches, keep_NL, strict=True)]
                right[kind, way, keep] = accuracy(encoder.features(views), labels_N, len(names))
                print(f"{kind} {way} {keep:g}: {right[kind, way, keep].mean():.4f}", flush=True)
    scored = gflop_per_view(model.config, scorer.visible, "decoder", FROZEN_TOKENS)
    arms = []
    for (kind, way, keep), right_N in right.items():
        ahead = (
            difference(right_N[None], right["patches", way, keep][None], seed=0) if kind == "blocks" else None
        )
        arms.append(
            {"scores": kind, "select": way, "keep": keep, "accuracy": interval(right_N[None], seed=0)}
            | {"ahead_of_patches": ahead}
        )
    return {
        "photos": len(photos),
        "classes": len(names),
        "gflop": {
            "patches": scored * -(-(grid**2) // scorer.visible),
            "blocks": block_gflop(model, grid, options.block_partitions),
        },
        "arms": arms,
    }


def main() -> None:
    """Measure, print and write."""
    options = tyro.cli(Options, description=__doc__)
    found = measured(options)
    rows = [
        [
            arm["scores"],
            arm["select"],
            f"{arm['keep']:g}",
            span(arm["accuracy"]),
            span(arm["ahead_of_patches"]),
        ]
        for arm in found["arms"]
    ]
    show("Scores", ["of", "select", "keep", "accuracy", "ahead of patches"], rows)
    asked = {**dataclasses.asdict(options), "work": str(options.work)}
    write_json({"options": asked, **plain(found)}, options.work / "block-removal.json")


if __name__ == "__main__":
    main()
