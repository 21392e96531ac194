"""Whether images that the teacher scores low are the ones to leave out of a training set.

A share of the train images is dropped by a rule, a probe is fitted to the rest, and tested; every seed has a validation
split of its own, on which the probe's penalty is chosen and from which nothing is dropped, and random drops of its own.
An image's score is what `prune --keep-images` reads from a table: the mean over its views of the mean score in a view.

    python -m benchmarks.image_pruning TRAIN_SHARDS ... --test TEST_SHARDS ... --work DIR

What the encoder and the teacher gave is kept in DIR; writes DIR/image-pruning.json.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks._common import show, span, write_json
from benchmarks._kept_arrays import kept_in
from patchsieve.pipeline.images.masks import draw_masks
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import FROZEN_TOKENS, IMAGE_FIELDS, Estimator
from patchsieve.pipeline.scoring.scorer import Scorer
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.evaluate.report_parts import plain
from patchsieve.ranker.learning.agreement import average_ranks
from patchsieve.ranker.prove.encoders import TeacherEncoder
from patchsieve.ranker.prove.intervals import difference, interval
from patchsieve.ranker.prove.photos import (
    LabelField,
    LabelledPhotos,
    class_names,
    read_photos,
    usable_test,
    validation_split,
)
from patchsieve.ranker.prove.probe import choose_penalty
from patchsieve.ranker.prove.views import Canvas, whole_view

RULES = ("low score", "high score", "random", "few bytes")
"""What is dropped first: by the teacher's score, by chance, by bytes per pixel of the crop as a JPEG of quality 90."""

_CHUNK, _BATCH = 256, 11
Flags = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Accuracy of a linear probe after dropping images by a rule."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Labelled shards to train on."""
    test: tuple[str, ...]
    """Labelled shards to test on."""
    work: Path
    """Folder of what is kept and of the results."""
    label: str = "cls"
    """Field with the label."""
    merge: str = ""
    """Labels that count as one, with commas between them."""
    teacher: str = "tiny"
    """Teacher that scores, and whose encoder is the probe's."""
    views: int = 2
    """Views of the centre crop that are scored."""
    estimator: Estimator = "exact"
    """Estimator of the scores."""
    drop: tuple[float, ...] = (0.2, 0.4)
    """Shares of the train images that are dropped."""
    seeds: int = 3
    """Validation splits, and draws of what is random."""
    limit_train: int | None = None
    """First train images to take."""
    limit_test: int | None = None
    """First test images to take."""


def view_scores(
    model: MaskedAutoencoder, photos: LabelledPhotos, views: int, estimator: Estimator
) -> NDArray[np.float64]:
    """The mean score in each view of each image's centre crop, `[N, views]`."""
    frozen = estimator == "frozen"
    scorer = Scorer(model, batch_size=_BATCH, frozen_tokens=FROZEN_TOKENS if frozen else None)

    def drawn(key: str) -> tuple[NDArray[Any], NDArray[Any]]:
        visible_KV = draw_masks(
            0, key, range(views), grid=model.config.grid, count=scorer.visible, masks="spread", partition=True
        )
        starts = [KeyedRandom(0, key, "frozen", view).uniform(scorer.visible) for view in range(views)]
        return visible_KV, np.stack(starts)

    means = []
    # Many images at once, since a batch that is not full is filled up.
    for start in range(0, len(photos), _CHUNK):
        rows = slice(start, start + _CHUNK)
        masks, starts = (np.concatenate(part) for part in zip(*map(drawn, photos.keys[rows]), strict=True))
        scores = scorer.score(
            photos.patches[rows].repeat_interleave(views, dim=0),
            torch.from_numpy(masks),
            torch.from_numpy(starts) if frozen else None,
        )
        means.append(scores.double().mean(dim=1).reshape(-1, views).numpy())
    return np.concatenate(means)


def seen(encoder: TeacherEncoder, photos: LabelledPhotos, canvas: Canvas) -> dict[str, NDArray[Any]]:
    """Features of whole crops, and bytes per pixel."""
    features, nbytes = [], []
    for start in range(0, len(photos), _CHUNK):
        views = [whole_view(patches_LP, canvas) for patches_LP in photos.patches[start : start + _CHUNK]]
        features.append(encoder.features(views))
        nbytes += [view.nbytes / canvas.size**2 for view in views]
    return {"features": np.concatenate(features), "bytes": np.array(nbytes)}


def keeps(rule: str, drop: float, free_N: Flags, by: dict[str, NDArray[np.float64]], seed: int) -> Flags:
    """Which images remain when a rule drops a share of the `free` ones, bool `[N]`; equal ones go in their order."""
    places = np.flatnonzero(free_N)
    values = KeyedRandom(seed, "", "image pruning").uniform(len(free_N)) if rule == "random" else by[rule]
    order = places[np.argsort(values[places], kind="stable")]
    kept_N = free_N.copy()
    kept_N[order[: round(drop * len(places))]] = False
    return kept_N


def measured(options: Options) -> dict[str, Any]:
    """Read, score, fit and test."""
    teacher = read_teacher(options.teacher)
    model, grid, size = build_teacher(teacher), teacher.config.grid, teacher.config.patch_size
    names = options.merge.split(",") if options.merge else []
    label = LabelField(options.label, dict.fromkeys(names, names[0]))

    def read(shards: tuple[str, ...], split: str, limit: int | None) -> LabelledPhotos:
        return read_photos(
            expand_shards(shards),
            split,
            label,
            grid=grid,
            patch_size=size,
            image_field=IMAGE_FIELDS,
            limit=limit,
        )

    train = read(options.shards, "train", options.limit_train)
    classes = class_names(train)
    test, notes = usable_test(read(options.test, "test", options.limit_test), train, set(classes))
    print(f"{len(train)} train and {len(test)} test images", *notes, sep="\n", flush=True)
    canvas = Canvas(grid, size, ImageCodec("jpeg", 90))
    encoder = TeacherEncoder(model, torch.device("cpu"))
    ours = kept_in(options.work / "train.npz", lambda: seen(encoder, train, canvas))
    theirs = kept_in(options.work / "test.npz", lambda: seen(encoder, test, canvas))
    scores_NK = kept_in(
        options.work / "scores.npz",
        lambda: {"scores": view_scores(model, train, options.views, options.estimator)},
    )["scores"]
    score_N = scores_NK.mean(axis=1)
    by = {"low score": score_N, "high score": -score_N, "few bytes": ours["bytes"]}
    labels_N, test_N = train.labels(classes), test.labels(classes)
    right: dict[tuple[str, float], list[Flags]] = {}
    for seed in range(options.seeds):
        chosen_on_N = validation_split(train, 0.2, seed)
        arms = [("full", 0.0), *((rule, drop) for drop in options.drop for rule in RULES)]
        for rule, drop in arms:
            kept_N = ~chosen_on_N if rule == "full" else keeps(rule, drop, ~chosen_on_N, by, seed)
            _, probe = choose_penalty(
                ours["features"], labels_N, fitted_N=kept_N, chosen_on_N=chosen_on_N, classes=len(classes)
            )
            right.setdefault((rule, drop), []).append(probe.predict(theirs["features"]) == test_N)
            print(f"seed {seed}, {rule} {drop:g}: {right[rule, drop][-1].mean():.4f}", flush=True)
    return report({arm: np.stack(flags) for arm, flags in right.items()}, by, scores_NK) | {
        "train_images": len(train),
        "test_images": len(test),
        "classes": len(classes),
    }


def _correlation(values_2N: NDArray[np.float64]) -> float:
    matrix = np.asarray(np.corrcoef(values_2N))
    return float(matrix[0, 1])


def report(
    right: dict[tuple[str, float], Flags], by: dict[str, NDArray[np.float64]], scores_NK: NDArray[np.float64]
) -> dict[str, Any]:
    """Accuracies, and how far each rule is ahead of dropping at random; intervals over test images and seeds."""
    arms = []
    for (rule, drop), right_SN in right.items():
        random_SN = right.get(("random", drop))
        ahead = (
            None
            if rule in ("full", "random") or random_SN is None
            else difference(right_SN, random_SN, seed=0)
        )
        arms.append(
            {"dropped": rule, "share": drop, "accuracy": interval(right_SN, seed=0), "ahead_of_random": ahead}
        )
    rank_2N = average_ranks(np.stack([by["low score"], by["few bytes"]]))
    found: dict[str, Any] = {"arms": arms, "score_with_bytes": _correlation(rank_2N)}
    if scores_NK.shape[1] == 2:
        found["score_of_two_views"] = _correlation(average_ranks(scores_NK.T))
    return found


def main() -> None:
    """Measure, print and write."""
    options = tyro.cli(Options, description=__doc__)
    found = measured(options)
    rows = [
        [arm["dropped"], f"{arm['share']:g}", span(arm["accuracy"]), span(arm["ahead_of_random"])]
        for arm in found["arms"]
    ]
    show("Images dropped", ["first", "share", "accuracy", "ahead of random"], rows)
    write_json(
        {"options": {**dataclasses.asdict(options), "work": str(options.work)}, **plain(found)},
        options.work / "image-pruning.json",
    )


if __name__ == "__main__":
    main()
