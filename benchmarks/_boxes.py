"""Photos with boxes around their objects, as the annotations of COCO and of Pascal VOC name them."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from patchsieve.pipeline.errors import UserError

Box = tuple[float, float, float, float]
"""Top, left, bottom, right in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxed:
    """A photo's file, its size as the annotations have it, and the boxes of each class."""

    path: Path
    height: int
    width: int
    boxes: Mapping[str, Sequence[Box]]


def read_annotations(annotations: Path, images: Path | None) -> list[Boxed]:
    """Photos with at least one box, in the order of the annotations; UserError for other files.

    COCO: instances_*.json and the folder of its images; boxes of crowds are left out. VOC: a list of names in
    ImageSets/Main, beside Annotations and JPEGImages; objects marked as difficult are left out.
    """
    try:
        if annotations.suffix == ".json":
            if images is None:
                raise UserError(f"{annotations} is of COCO: name the folder of its images too")
            found = _coco(annotations, images)
        else:
            found = _voc(annotations)
    except (KeyError, TypeError, ValueError, AttributeError, ElementTree.ParseError) as error:
        raise UserError(f"{annotations} is no annotation of COCO or VOC ({error!r})") from None
    return [photo for photo in found if photo.boxes]


def crop_cells(photo: Boxed, label: str, grid: int) -> NDArray[np.float32]:
    """How much of each patch of the centre crop the boxes of a class cover, float32 `[grid * grid]`, in sixteenths of
    its side: boxes are rounded to those.
    """
    short = min(photo.height, photo.width)
    fine = grid * 16
    origin = np.array([(photo.height - short) // 2, (photo.width - short) // 2] * 2)
    inside: NDArray[np.float32] = np.zeros((fine, fine), np.float32)
    for box in photo.boxes[label]:
        top, left, bottom, right = ((np.array(box) - origin) * fine / short).round().clip(0, fine).astype(int)
        inside[top:bottom, left:right] = 1
    cells: NDArray[np.float32] = inside.reshape(grid, 16, grid, 16).mean(axis=(1, 3)).reshape(-1)
    return cells


def _coco(annotations: Path, images: Path) -> list[Boxed]:
    told = json.loads(annotations.read_text())
    names = {one["id"]: str(one["name"]) for one in told["categories"]}
    boxes: dict[int, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    for one in told["annotations"]:
        if not one.get("iscrowd"):
            left, top, width, height = map(float, one["bbox"])
            boxes[one["image_id"]][names[one["category_id"]]].append((top, left, top + height, left + width))
    return [
        Boxed(
            path=images / _bare(one["file_name"]),
            height=int(one["height"]),
            width=int(one["width"]),
            boxes=boxes[one["id"]],
        )
        for one in told["images"]
    ]


def _voc(names: Path) -> list[Boxed]:
    folder = names.absolute().parents[2]
    return [
        _voc_photo(folder, _bare(line.split()[0])) for line in names.read_text().splitlines() if line.strip()
    ]


def _voc_photo(folder: Path, name: str) -> Boxed:
    root = ElementTree.fromstring((folder / "Annotations" / f"{name}.xml").read_text())
    boxes: dict[str, list[Box]] = defaultdict(list)
    for one in root.iter("object"):
        if one.findtext("difficult", "0").strip() == "0":
            first, last = (
                _numbers(one, "bndbox/ymin", "bndbox/xmin"),
                _numbers(one, "bndbox/ymax", "bndbox/xmax"),
            )
            # Pixels count from 1, and the last one is inside.
            boxes[_text(one, "name")].append((first[0] - 1, first[1] - 1, last[0], last[1]))
    height, width = _numbers(root, "size/height", "size/width")
    return Boxed(
        path=folder / "JPEGImages" / f"{name}.jpg", height=int(height), width=int(width), boxes=boxes
    )


def _numbers(element: ElementTree.Element, *paths: str) -> list[float]:
    return [float(_text(element, path)) for path in paths]


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text.strip()


def _bare(name: str) -> str:
    """The name of a file in a folder; ValueError for a path."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no bare file name")
    return name
