"""What benchmarks.unbiased reads, and how its selectors that know classes work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks._boxes import crop_cells, read_annotations
from benchmarks._class_maps import Lite0Look, TeacherEye
from benchmarks._class_pictures import GRID, SIZE, Picture, boxed_pictures, whole_photos
from benchmarks._scene_maker import LARGEST, Photo
from benchmarks._scene_photos import Material
from benchmarks.unbiased import compared, half_probe, halves
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.patches import normalise, patchify
from patchsieve.pipeline.images.views import encode_view
from patchsieve.ranker.prove.probe import Probe
from tests.helpers.teachers import SMALL, random_teacher

VOC = """<annotation><size><width>300</width><height>224</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>39</xmin><ymin>1</ymin><xmax>54</xmax><ymax>16</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


PHOTO = encode_view(torch.full((3, 224, 300), 90, dtype=torch.uint8))


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PHOTO)


def voc(folder: Path, names: str = "a\n") -> Path:
    jpeg(folder / "JPEGImages" / "a.jpg")
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "Annotations" / "a.xml").write_text(VOC)
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_text(names)
    return path


def coco(folder: Path, **image: object) -> Path:
    jpeg(folder / "images" / "a.jpg")
    box = {"image_id": 7, "category_id": 3}
    told = {
        "categories": [{"id": 3, "name": "dog"}],
        "images": [{"id": 7, "file_name": "a.jpg", "height": 224, "width": 300, **image}],
        "annotations": [
            {**box, "iscrowd": 0, "bbox": [38, 0, 16, 16]},
            {**box, "iscrowd": 1, "bbox": [0, 0, 300, 224]},
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(told))
    return path


def test_coco_and_voc_tell_the_same_box_and_leave_out_crowds_and_difficult_ones(tmp_path: Path) -> None:
    of_voc = read_annotations(voc(tmp_path / "voc"), None)
    of_coco = read_annotations(coco(tmp_path / "coco"), tmp_path / "coco" / "images")
    assert [dict(photo.boxes) for photo in of_voc + of_coco] == [{"dog": [(0, 38, 16, 54)]}] * 2
    cells = crop_cells(of_voc[0], "dog", GRID)
    # The centre crop begins 38 px in, so that the box is its first patch.
    assert cells[0] == 1
    assert cells.sum() == 1
    (picture,) = boxed_pictures(tmp_path / "coco" / "instances.json", tmp_path / "coco" / "images", 9)
    assert (picture.label, picture.pixels.shape) == ("dog", (3, SIZE, SIZE))
    assert picture.share(cells > 0) == 1


def test_other_annotations_are_refused(tmp_path: Path) -> None:
    images = tmp_path / "coco" / "images"
    with pytest.raises(UserError, match="no bare file name"):
        read_annotations(coco(tmp_path / "coco", file_name="../a.jpg"), images)
    with pytest.raises(UserError, match="name the folder"):
        read_annotations(tmp_path / "coco" / "instances.json", None)
    with pytest.raises(UserError, match="no bare file name"):
        read_annotations(voc(tmp_path / "voc", "../a\n"), None)
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text("<annotation><object/>")
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    with pytest.raises(UserError, match="no annotation of COCO or VOC"):
        read_annotations(tmp_path / "voc" / "ImageSets" / "Main" / "train.txt", None)
    with pytest.raises(UserError, match="224 x 300 pixels, its annotation 224 x 299"):
        list(boxed_pictures(coco(tmp_path / "other", width=299), tmp_path / "other" / "images", 1))


def test_maps_are_those_of_the_class_that_a_probe_answers() -> None:
    model = random_teacher(SMALL)
    random = np.random.default_rng(0)
    side = SMALL.grid * SMALL.patch_size
    pixels = torch.from_numpy(random.integers(0, 256, (12, 3, side, side), dtype=np.uint8))
    patches = patchify(pixels, SMALL.patch_size)
    look = TeacherEye(model)(pixels)
    features = look.features
    with torch.no_grad():
        latent = model.encode(normalise(patches), torch.arange(SMALL.positions).expand(12, -1))
    assert features == pytest.approx(torch.cat([latent[:, 0], latent[:, 1:].mean(1)], 1).numpy(), abs=1e-4)
    labels = np.arange(12) % 4
    probe = half_probe(features, labels, halves(list("abcd"), 0))
    maps = look.maps(probe)
    answered = look.answers(probe)
    assert halves(list("abcd"), 0)[answered].all()
    weights = (probe.weights / probe.scale)[answered]
    width = SMALL.width
    # The map sums to what the patches' mean contributes to the answer.
    mean = latent[:, 1:].mean(1).numpy()
    assert maps["teacher Grad-CAM"].mean(axis=1) == pytest.approx(
        (mean * weights[:, width:]).sum(axis=1), rel=1e-3, abs=1e-3
    )
    assert maps["teacher attention of a class"].shape == (12, SMALL.positions)


def test_a_small_object_is_answered_where_the_whole_picture_is_its_background() -> None:
    probe = Probe(weights=np.eye(2), bias=np.zeros(2), mean=np.zeros(2), scale=np.ones(2))
    map_NDHW = torch.zeros(1, 2, GRID, GRID)
    map_NDHW[:, 0] = 1
    map_NDHW[:, 1, 3:6, 8:11] = 9
    look = Lite0Look(map_NDHW, GRID)
    assert probe.predict(look.features).tolist() == [0]
    assert look.answers(probe).tolist() == [1]
    (cam_NL,) = look.maps(probe).values()
    assert cam_NL.reshape(GRID, GRID)[3:6, 8:11].tolist() == [[9] * 3] * 3
    assert cam_NL.sum() == 81


def test_whole_photos_are_of_all_classes_in_turns() -> None:
    photos = {name: [Photo(f"{name}{n}", name, PHOTO, 224) for n in range(3)] for name in "ab"}
    found = list(whole_photos(Material(photos, []), 4, seed=0))
    assert [sorted(one.label for one in found[turn : turn + 2]) for turn in (0, 2)] == [["a", "b"]] * 2
    assert len({one.group for one in found}) == 4
    assert {tuple(one.pixels.shape) for one in found} == {(3, LARGEST, LARGEST)}


def test_the_gap_is_that_of_the_same_pictures_seen_and_unseen() -> None:
    cells = np.zeros(GRID**2, np.float32)
    cells[0] = 1
    pictures = [
        Picture(label=name, pixels=torch.zeros(1), object=cells, group=str(n), background=str(n))
        for n, name in enumerate("abab")
    ]
    # Each half finds the objects of its own class alone.
    first, second = np.zeros((2, 4, GRID**2), np.float32)
    first[:, -98:], second[:, -98:] = 1, 1
    first[::2, 0], second[1::2, 0] = 2, 2
    lines = compared(
        pictures, np.array([True, False] * 2), {"free": first}, [{"own": first}, {"own": second}], seed=0
    )
    at = {(line["selector"], line["way"], line["keep"]): line for line in lines}
    own = at["own", "topk", 0.25]
    assert (own["seen"].value, own["unseen"].value, own["gap"].value) == (1, 0, 1)
    assert at["free", "topk", 0.25]["share"].value == 0.5
