"""Whether selectors that learned classes prefer the classes that they learned: the claim that a label-free one is not.

    python -m benchmarks.unbiased scenes --train SHARDS ... --test SHARDS ... \
        --test-backgrounds SHARDS ... --names classes.json --merge Faces_easy=Faces --work DIR
    python -m benchmarks.unbiased boxes --train instances_train2017.json --train-images train2017 \
        --test instances_val2017.json --test-images val2017 --work DIR
    python -m benchmarks.unbiased boxes --train VOC2012/ImageSets/Main/train.txt \
        --test VOC2012/ImageSets/Main/val.txt --work DIR

Classes are halved at random; a linear probe learns one half, another the other. Every test picture is one of a class
that the first has seen and the second has not, or the other way round: what both keep of the same object is compared.
Writes DIR/unbiased.json.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks._class_maps import Eye, Lite0Eye, TeacherEye, patches_of
from benchmarks._class_pictures import (
    GRID,
    Picture,
    boxed_pictures,
    labels_of,
    scene_pictures,
    whole_photos,
)
from benchmarks._common import show, span, write_json
from benchmarks._kept_arrays import kept_in
from benchmarks._scene_maker import PATCH
from benchmarks._scene_photos import class_names, read_material
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.ranker.baselines.baselines import class_attention
from patchsieve.ranker.baselines.leverage import feature_leverage
from patchsieve.ranker.evaluate.report_parts import plain
from patchsieve.ranker.learning.agreement import Scores
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.prove.intervals import crossed_bootstrap
from patchsieve.ranker.prove.probe import Probe, choose_penalty, fit_probe
from patchsieve.ranker.select import regions, selection

KEEPS = (0.25, 0.5)
_BATCH = 25
_VALIDATION = 5
"""Every fifth train picture chooses the penalty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Both:
    work: Path
    """Folder of what is kept and of the results."""
    teacher: str = "tiny"
    """Teacher whose encoder a probe reads."""
    ranker: str = "tiny"
    """The ranker beside it."""
    train_pictures: int = 2000
    """Pictures that the probes learn: whole photos, of all classes in turns, or photos with boxes."""
    test_pictures: int = 400
    """Pictures that are selected from."""
    seed: int = 0
    """Of the scenes, and of the halves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(_Both):
    """On scenes of photos, as benchmarks.scenes makes them."""

    train: tuple[str, ...]
    """Labelled photos."""
    test: tuple[str, ...]
    """Labelled photos."""
    names: Path
    """JSON list of the labels' names."""
    test_backgrounds: tuple[str, ...] = ()
    """Shards of backgrounds."""
    merge: tuple[str, ...] = ()
    """Labels that count as another, as LABEL=AS."""

    def pictures(self, split: str, count: int) -> Iterator[Picture]:
        """Whole photos to learn from, scenes to select from."""
        merged = dict(pair.split("=", 1) for pair in self.merge)
        names = class_names(self.names)
        if split == "train":
            return whole_photos(read_material(self.train, (), names, merged), count, self.seed)
        material = read_material(self.test, self.test_backgrounds, names, merged)
        seed = int(KeyedRandom(self.seed, split, "unbiased scenes").words(1)[0])
        return scene_pictures(material, count, seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(_Both):
    """On photos with boxes: annotations of COCO with the folder of images, or a list of names of VOC."""

    train: Path
    """Annotations."""
    test: Path
    """Annotations."""
    train_images: Path | None = None
    """Images of COCO."""
    test_images: Path | None = None
    """Images of COCO."""

    def pictures(self, split: str, count: int) -> Iterator[Picture]:
        """Of a split."""
        return boxed_pictures(getattr(self, split), getattr(self, f"{split}_images"), count)


def halves(classes: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Which half each class is in, as evenly as can be, bool `[C]`."""
    first_C: NDArray[np.bool_] = np.zeros(len(classes), np.bool_)
    first_C[KeyedRandom(seed, "", "unbiased halves").permutation(len(classes))[: len(classes) // 2]] = True
    return first_C


def half_probe(
    features_NE: NDArray[np.float32], labels_N: NDArray[np.int64], half_C: NDArray[np.bool_]
) -> Probe:
    """A probe that saw the classes of a half alone; no other is ever its answer."""
    seen_N = half_C[labels_N]
    chosen_on_N = np.arange(len(labels_N)) % _VALIDATION == 0
    penalty, _ = choose_penalty(
        features_NE,
        labels_N,
        fitted_N=seen_N & ~chosen_on_N,
        chosen_on_N=seen_N & chosen_on_N,
        classes=len(half_C),
    )
    return fit_probe(features_NE[seen_N], labels_N[seen_N], len(half_C), penalty.value)


def looked_at(pictures: Iterator[Picture], eyes: Mapping[str, Eye]) -> dict[str, NDArray[Any]]:
    """What probes read of pictures, by encoder, and their `labels`."""
    parts: dict[str, list[Any]] = {name: [] for name in (*eyes, "labels")}
    for batch in batches(pictures):
        pixels_N3SS = torch.stack([one.pixels for one in batch])
        for name, eye in eyes.items():
            parts[name].append(eye(pixels_N3SS).features)
        parts["labels"].append([one.label for one in batch])
    return {name: np.concatenate(some) for name, some in parts.items()}


def shares(pictures: Sequence[Picture], scores_NL: Scores, keep: float, way: str) -> NDArray[np.float64]:
    """What is kept of each object, float64 `[N]`."""
    count = selection.keep_count(GRID**2, keep)
    keep_NL = regions.window(scores_NL, count) if way == "window" else selection.topk(scores_NL, count)
    return np.array([one.share(keep_L) for one, keep_L in zip(pictures, keep_NL, strict=True)])


def compared(
    pictures: Sequence[Picture],
    seen_N: NDArray[np.bool_],
    free: Mapping[str, Scores],
    of_halves: Sequence[Mapping[str, Scores]],
    seed: int,
) -> list[dict[str, Any]]:
    """A line for each selector, way and ratio. `seen`: whether the first half has a picture's class.

    Intervals draw objects and backgrounds anew, crossed, and the gap is paired by picture.
    """
    groups = [[one.group for one in pictures], [one.background for one in pictures]]
    lines = []
    for way in ("topk", "window"):
        for keep in KEEPS:
            for name, scores_NL in free.items():
                kept_N = shares(pictures, scores_NL, keep, way)
                share = crossed_bootstrap([kept_N], lambda mean: mean, groups, seed=seed)
                lines.append({"selector": name, "way": way, "keep": keep, "share": share})
            for name in of_halves[0]:
                first_N, second_N = (shares(pictures, maps[name], keep, way) for maps in of_halves)
                columns = [np.where(seen_N, first_N, second_N), np.where(seen_N, second_N, first_N)]
                seen, unseen = (
                    crossed_bootstrap([column], lambda mean: mean, groups, seed=seed) for column in columns
                )
                gap = crossed_bootstrap(columns, lambda a, b: a - b, groups, seed=seed)
                lines.append(
                    {"selector": name, "way": way, "keep": keep, "seen": seen, "unseen": unseen, "gap": gap}
                )
    return lines


def measured(options: Scenes | Boxes) -> dict[str, Any]:
    """Fit the probes of both halves, select, compare."""
    teacher = build_teacher(read_teacher(options.teacher))
    ranker = load_ranker(options.ranker, device="cpu")
    eyes: dict[str, Eye] = {"teacher": TeacherEye(teacher), "lite0": Lite0Eye(GRID)}
    kept = kept_in(
        options.work / "train.npz",
        lambda: looked_at(options.pictures("train", options.train_pictures), eyes),
    )
    names = kept["labels"].tolist()
    classes = sorted(set(names))
    labels_N = np.array([classes.index(name) for name in names], np.int64)
    first_C = halves(classes, options.seed)
    probes = {
        name: [half_probe(kept[name], labels_N, half_C) for half_C in (first_C, ~first_C)] for name in eyes
    }
    pictures: list[Picture] = []
    scores: list[dict[str, list[Scores]]] = [{}, {}, {}]
    right: dict[str, list[bool]] = {name: [] for name in eyes}
    for batch in batches(options.pictures("test", options.test_pictures)):
        known = [one for one in batch if one.label in classes]
        if not known:
            continue
        pictures += known
        pixels_N3SS = torch.stack([one.pixels for one in known])
        patches_NLP = patches_of(pixels_N3SS, GRID, PATCH)
        with torch.inference_mode():
            label_free = {
                "ranker": ranker.model.forward_image(patches_NLP).numpy(),
                "teacher attention": class_attention(teacher, patches_NLP).numpy(),
                "teacher leverage": feature_leverage(teacher, patches_NLP).numpy(),
            }
        _extend(scores[2], label_free)
        wanted_N = labels_of(known, classes)
        for name, eye in eyes.items():
            look = eye(pixels_N3SS)
            for half, probe in enumerate(probes[name]):
                _extend(scores[half], look.maps(probe))
                seen_N = (first_C if half == 0 else ~first_C)[wanted_N]
                right[name] += (look.answers(probe) == wanted_N)[seen_N].tolist()
        print(f"{len(pictures)} test pictures", flush=True)
    first, second, free = ({name: np.concatenate(some) for name, some in one.items()} for one in scores)
    seen_N = first_C[labels_of(pictures, classes)]
    return {
        "train_pictures": len(names),
        "test_pictures": len(pictures),
        "classes": len(classes),
        "accuracy_on_seen": {name: float(np.mean(flags)) for name, flags in right.items()},
        "lines": compared(pictures, seen_N, free, [first, second], options.seed),
    }


def batches(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """As many at once as are encoded together."""
    while batch := list(itertools.islice(pictures, _BATCH)):
        yield batch


def _extend(parts: dict[str, list[Scores]], more: Mapping[str, Scores]) -> None:
    for name, scores_NL in more.items():
        parts.setdefault(name, []).append(scores_NL)


def main() -> None:
    """Measure, print and write."""
    options = tyro.cli(Union[Scenes, Boxes], description=__doc__)  # noqa: UP007
    found = measured(options)
    rows = [
        [line["selector"], line["way"], f"{line['keep']:g}"]
        + [span(line.get(name)) for name in ("share", "seen", "unseen", "gap")]
        for line in found["lines"]
    ]
    show("Share of the object kept", ["selector", "way", "keep", "no labels", "seen", "unseen", "gap"], rows)
    print(f"probes name {found['accuracy_on_seen']} of the pictures of classes that they saw")
    asked = {name: str(value) for name, value in vars(options).items()}
    write_json({"options": asked, **plain(found)}, options.work / "unbiased.json")


if __name__ == "__main__":
    main()
