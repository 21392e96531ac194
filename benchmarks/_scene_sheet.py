"""Scenes and what is kept of them, as one picture to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks._scene_arms import GRID, Arm, Scorer, kept, share_kept
from benchmarks._scene_maker import Scene

_SIDE, _LINE = 168, 16


def draw_scenes(scenes: Sequence[Scene], arms: Sequence[Arm], scorer: Scorer, path: Path) -> None:
    """A row for each scene: itself with its box, then each arm, what it drops dimmed, and its share of the object."""
    shown = list({arm.selector: arm for arm in arms if arm.scores and not arm.as_jpeg}.values())
    size = ((len(shown) + 1) * (_SIDE + 4), len(scenes) * (_SIDE + _LINE) + _LINE)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, arm in enumerate(shown, 1):
        pen.text((column * (_SIDE + 4), 2), arm.selector, fill="black")
    for row, scene in enumerate(scenes):
        top = _LINE + row * (_SIDE + _LINE)
        whole = Image.fromarray(scene.pixels.permute(1, 2, 0).numpy())
        box_top, box_left, height, width = scene.box
        boxed = whole.copy()
        outline = (box_left, box_top, box_left + width, box_top + height)
        ImageDraw.Draw(boxed).rectangle(outline, outline="red", width=3)
        sheet.paste(boxed.resize((_SIDE, _SIDE)), (0, top))
        pen.text((0, top + _SIDE), f"{scene.label}"[:26], fill="black")
        for column, arm in enumerate(shown, 1):
            keep_L = kept(arm, scorer(arm.scores, scene, row), scene.pixels.shape[1])
            block = scene.pixels.shape[1] // GRID
            held = keep_L.reshape(GRID, GRID).repeat(block, 0).repeat(block, 1)
            pixels = np.where(held[:, :, None], np.asarray(whole), np.asarray(whole) // 4)
            at = (column * (_SIDE + 4), top)
            sheet.paste(Image.fromarray(pixels.astype(np.uint8)).resize((_SIDE, _SIDE)), at)
            pen.text((at[0], top + _SIDE), f"{share_kept(scene, keep_L):.2f} of the object", fill="black")
    sheet.save(path, quality=85)
    print(f"written: {path}")
