"""Whether scores prefer objects to texture: what is kept of the same ellipse, filled with either, or with nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks._scene_arms import Arm, Scorer, kept, share_kept
from benchmarks._scene_maker import Filling, Maker

_SCORES = ("ranker", "edge", "variance", "gradient", "centre")
_SHAPES = ("topk", "window")


def textures(path: Path, test: Maker, scorer: Scorer, scenes: int, *, make: bool) -> dict[str, Any]:
    """Mean share of the ellipse that is kept at 25 %, by selector and filling; one file, written when all is done."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if not make or found["scenes"] >= scenes:
            return found
    if not make:
        return {}
    arms = [Arm(scores=name, shape=shape, keep=0.25, way="crop") for name in _SCORES for shape in _SHAPES]
    shares: dict[str, dict[str, list[float]]] = {arm.selector: {} for arm in arms}
    for number in range(scenes):
        for filling in get_args(Filling):
            scene = test(number, filling)
            scores = {name: scorer(name, scene, number) for name in _SCORES}
            for arm in arms:
                keep_L = kept(arm, scores[arm.scores], scene.pixels.shape[1])
                shares[arm.selector].setdefault(filling, []).append(share_kept(scene, keep_L))
    means = {
        name: {filling: float(np.mean(values)) for filling, values in by_filling.items()}
        for name, by_filling in shares.items()
    }
    found = {"scenes": scenes, "shares": means}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found
