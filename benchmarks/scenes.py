"""Whether selecting patches pays where objects are small: recognition in scenes, beside every control of equal tokens.

    python -m benchmarks.scenes --train SHARDS ... --train-backgrounds SHARDS ... --test SHARDS ... \
        --test-backgrounds SHARDS ... --names classes.json --merge Faces_easy=Faces --work DIR

A scene is a photo in a feathered ellipse, somewhere on a background (`--tiles`: on a mosaic of them). A selector is
chosen on scenes of train photos; then scenes of test photos are opened, for it and its controls. A run goes on where
one was stopped, and `--report-only` says what is known so far. Writes DIR/scenes.json, scenes.png and sheet.jpg.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks._common import machine
from benchmarks._scene_arms import Arm, Scorer, Way, candidates, controls
from benchmarks._scene_head import fitted_head
from benchmarks._scene_maker import Filling, Maker, Scene, make_scene
from benchmarks._scene_photos import Material, class_names, read_material, split_material
from benchmarks._scene_probe import Head, Lite0
from benchmarks._scene_report import Measured, draw, print_report, report
from benchmarks._scene_sheet import draw_scenes
from benchmarks._scene_store import Store, right
from benchmarks._scene_textures import textures
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import read_teacher
from patchsieve.ranker.model.checkpoint import load_ranker

KEEPS = (0.25, 0.5)
FREE = ("work", "report_only", "scenes", "fill_scenes", "texture_scenes")
"""Options that a folder may be gone on with at other values: there is more of the same."""

VERSION = 3
"""Raised when the same options give other figures."""


def say(text: str) -> None:
    """A line with the time."""
    print(f"{time.strftime('%X')} {text}", flush=True)


def maker(material: Material, options: argparse.Namespace, split: str) -> Maker:
    """Makes the scene of a number, with what is to fill the ellipse."""
    seed = int(KeyedRandom(options.seed, split, "scenes of a split").words(1)[0])

    def make(number: int, filling: Filling = "object") -> Scene:
        return make_scene(
            material.objects,
            material.backgrounds,
            size=options.size,
            tiles=options.tiles,
            seed=seed,
            number=number,
            filling=filling,
        )

    return make


def read_head(material: Material, options: argparse.Namespace, probe: Lite0, scorer: Scorer) -> Head:
    """The probe's head: fitted on train photos, and on what is object and what is not in scenes of them.

    Its penalty is the best on a fifth of those scenes. Features are kept.
    """
    photos = [
        (name, photo)
        for name, some in material.objects.items()
        for photo in sorted(some, key=lambda one: KeyedRandom(options.seed, one.key, "head").words(1)[0])[
            : options.head_photos
        ]
    ]
    make = maker(material, options, "head")
    return fitted_head(options.work / "head", photos, make, options.head_scenes, probe, scorer, KEEPS[0], say)


def choose(store: Store, head: Head, options: argparse.Namespace) -> dict[str, Any]:
    """The selector that is best on validation scenes at the first ratio; written before test scenes are opened.

    Of those that name as many objects, the one that keeps most of them. `--selector` names one that was fixed before.
    """
    arms = candidates(KEEPS[0], "crop")
    if options.selector:
        if options.selector not in (known := [arm.selector for arm in arms]):
            raise UserError(f"--selector is {options.selector!r}, must be one of: {', '.join(known)}")
        return {"selector": options.selector, "keep": KEEPS[0], "scenes": 0, "validation": {}}
    path: Path = options.work / "choice.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    store.fill(arms, options.validation_scenes, lambda text: say(f"validation: {text}"))
    facts = store.facts(options.validation_scenes)
    table = {}
    for arm in arms:
        seen = store.read(arm, options.validation_scenes)
        table[arm.selector] = {
            "recognition": float(right(seen, head, facts).mean()),
            "share": float(seen.share.mean()),
        }
    best = max(table, key=lambda name: (table[name]["recognition"], table[name]["share"]))
    found = {"selector": best, "keep": KEEPS[0], "scenes": options.validation_scenes, "validation": table}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return found


def same_settings(path: Path, asked: dict[str, Any]) -> None:
    """Keep what a folder was begun with; UserError for anything else."""
    if not path.exists():
        path.write_text(json.dumps(asked, indent=2) + "\n")
    begun = json.loads(path.read_text())
    differing = sorted(name for name in asked if begun.get(name) != asked[name])
    if differing:
        raise UserError(f"{path.parent} was begun with other {', '.join(differing)}: take another --work")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Arms that are compared, on as many test scenes."""

    keep: float
    way: Way
    arms: tuple[Arm, ...]
    scenes: int


def test_stages(chosen: str, options: argparse.Namespace) -> list[Stage]:
    """The most telling first."""
    stages = []
    for way, keep in itertools.product(get_args(Way), KEEPS):
        own = {arm.selector: arm for arm in candidates(keep, way)}
        arms = [own[chosen], *(arm for arm in own.values() if arm.shape == "topk" and arm.selector != chosen)]
        scenes = options.scenes if way == "crop" else min(options.scenes, options.fill_scenes)
        stages.append(Stage(keep, way, (*arms, *controls(own[chosen])), scenes))
    return stages


def main() -> None:
    """Measure what is not there yet, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for split in ("train", "test"):
        parser.add_argument(
            f"--{split}", nargs="+", required=True, help="labelled photos; those without are backgrounds"
        )
        parser.add_argument(f"--{split}-backgrounds", nargs="+", default=[])
    parser.add_argument("--names", type=Path, required=True, help="JSON list of the labels' names")
    parser.add_argument(
        "--merge", nargs="*", default=[], metavar="LABEL=AS", help="labels that count as another"
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ranker", default="tiny")
    parser.add_argument("--teacher", default="tiny", help="whose features leverage is taken in")
    parser.add_argument("--selector", help="the one that is tested, chosen before: none is chosen here")
    parser.add_argument("--size", type=int, default=448, help="side of a scene, a multiple of 224")
    parser.add_argument("--tiles", type=int, default=1, help="backgrounds along a side of a mosaic")
    parser.add_argument("--enlarge", type=int, default=2, help="times that the probe sees pictures enlarged")
    parser.add_argument("--head-photos", type=int, default=10, help="train photos of each class for the head")
    parser.add_argument("--head-scenes", type=int, default=1000, help="scenes of train photos for the head")
    parser.add_argument("--validation-scenes", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=300, help="test scenes")
    parser.add_argument(
        "--fill-scenes", type=int, default=100, help="of them also seen whole, which takes four times as long"
    )
    parser.add_argument("--texture-scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    try:
        run(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> None:
    """See `main`."""
    if options.size % 224 or options.size % options.tiles:
        raise UserError(f"--size is {options.size}, must be a multiple of 224 and of --tiles {options.tiles}")
    options.work.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(options).items() if name not in FREE}
    asked["version"] = VERSION
    same_settings(options.work / "settings.json", json.loads(json.dumps(asked, default=str)))
    names, merged = class_names(options.names), dict(pair.split("=", 1) for pair in options.merge)
    train = read_material(options.train, options.train_backgrounds, names, merged)
    for_head, for_choice = split_material(train, options.seed)
    teacher = build_teacher(read_teacher(options.teacher))
    scorer, probe = (
        Scorer(load_ranker(options.ranker, device="cpu"), teacher, options.seed),
        Lite0(options.enlarge),
    )
    head = read_head(for_head, options, probe, scorer)
    say(f"head: {head.accuracy:.3f} on pictures that it was not fitted on")
    make = maker(for_choice, options, "validation")
    choice = choose(Store(options.work, "validation", make, scorer, probe), head, options)
    say(f"chosen: {choice['selector']}, of {choice['validation'] or 'none: it was asked for'}")

    test = maker(read_material(options.test, options.test_backgrounds, names, merged), options, "test")
    store = Store(options.work, "test", test, scorer, probe)
    stages = test_stages(choice["selector"], options)
    if not options.report_only:
        for stage in stages:
            name = f"test, {stage.way} at {stage.keep}"
            store.fill(stage.arms, stage.scenes, lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
    facts = store.facts(options.scenes)
    measured = {}
    for arm in (arm for stage in stages for arm in stage.arms):
        seen = store.read(arm, options.scenes)
        if len(seen.numbers):
            measured[arm.id] = Measured(
                arm, arm.tokens(options.size), seen.numbers, seen.share, seen.nbytes, right(seen, head, facts)
            )
    found = report(list(measured.values()), facts, choice, seed=options.seed)
    found["texture"] = textures(
        options.work / "texture.json", test, scorer, options.texture_scenes, make=not options.report_only
    )
    found |= {"settings": asked, "head": head.accuracy, "machine": machine()}
    (options.work / "scenes.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    print_report(found)
    draw(found, options.work / "scenes.png")
    shown = [arm for stage in stages[:2] for arm in stage.arms]
    draw_scenes([test(number) for number in range(8)], shown, scorer, options.work / "sheet.jpg")


if __name__ == "__main__":
    main()
