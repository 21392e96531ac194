"""Drawing and applying crops: against a slow reference, pinned values, Pillow's resizing."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from patchsieve.pipeline.errors import ContentError
from patchsieve.pipeline.images.views import ViewBox, apply_view, decode_view, draw_view, encode_view
from patchsieve.pipeline.randomness import KeyedRandom
from tests.helpers.photos import encode, photo_pixels


def tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def reference_draw(seed: int, key: str, view: int, height: int, width: int) -> ViewBox:
    """RandomResizedCrop as its description says, on the same random numbers."""
    numbers = KeyedRandom(seed, key, "crop", view).uniform(23)
    mirrored = bool(numbers[22] < 0.5)
    for attempt in range(10):
        area = (0.2 + 0.8 * numbers[2 * attempt]) * height * width
        lowest, highest = math.log(3 / 4), math.log(4 / 3)
        ratio = math.exp(lowest + (highest - lowest) * numbers[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            top, left = math.floor(numbers[20] * (height - h + 1)), math.floor(numbers[21] * (width - w + 1))
            return ViewBox(top, left, h, w, mirrored)
    w, h = width, height
    if width / height < 3 / 4:
        h = max(1, round(width / (3 / 4)))
    elif width / height > 4 / 3:
        w = max(1, round(height * (4 / 3)))
    return ViewBox((height - h) // 2, (width - w) // 2, h, w, mirrored)


SIZES = [(375, 500), (500, 375), (224, 224), (1, 1), (2, 1), (3, 2000), (2000, 3), (100, 300), (9000, 7000)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_random_crops_equal_the_reference_and_lie_in_the_image(height: int, width: int) -> None:
    for view in range(200):
        box = draw_view(7, "a/b", view, height=height, width=width, crop="random", size=224)
        assert box == reference_draw(7, "a/b", view, height, width)
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
        assert min(box.height, box.width) >= 1


def test_random_crops_are_spread_as_they_should_be() -> None:
    boxes = [
        draw_view(0, str(number), 0, height=1000, width=1000, crop="random", size=224)
        for number in range(4000)
    ]
    areas = np.array([box.height * box.width for box in boxes]) / 1e6
    ratios = np.log([box.width / box.height for box in boxes])
    # A crop of area a and ratio r fits a square image if |ln r| <= -ln a, else it is drawn again: the mean of a
    # uniform a of 0.2 to 1 under that condition is 0.538.
    assert areas.min() >= 0.199
    assert areas.mean() == pytest.approx(0.538, abs=0.01)
    assert abs(ratios.mean()) < 0.02
    assert abs(ratios).max() <= math.log(4 / 3) + 0.01
    assert 0.47 < np.mean([box.hflip for box in boxes]) < 0.53
    small = [box for box in boxes if max(box.height, box.width) < 900]
    places = [(box.top / (1000 - box.height), box.left / (1000 - box.width)) for box in small]
    np.testing.assert_allclose(np.mean(places, axis=0), 0.5, atol=0.02)


def test_draws_are_pinned() -> None:
    # A changed value here changes every score table: raise ROWS_VERSION with it.
    draws = [
        draw_view(0, "photo", 0, height=375, width=500, crop="random", size=224),
        draw_view(0, "photo", 1, height=375, width=500, crop="random", size=224),
        draw_view(1, "photo", 0, height=375, width=500, crop="random", size=224),
        draw_view(0, "naïve/фото", 7, height=3000, width=2000, crop="random", size=224),
        draw_view(0, "strip", 0, height=3, width=2000, crop="random", size=224),
    ]
    assert draws == [
        ViewBox(29, 151, 346, 320, False),
        ViewBox(153, 99, 187, 233, True),
        ViewBox(21, 65, 335, 378, False),
        ViewBox(567, 4, 1965, 1946, True),
        ViewBox(0, 998, 3, 4, True),
    ]


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (375, 500, 224, ViewBox(23, 86, 328, 328, False)),
        (256, 256, 224, ViewBox(16, 16, 224, 224, False)),
        (512, 700, 448, ViewBox(32, 126, 448, 448, False)),
        (2000, 3, 224, ViewBox(998, 0, 3, 3, False)),
        (1, 1, 224, ViewBox(0, 0, 1, 1, False)),
    ],
)
def test_center_crops(height: int, width: int, size: int, box: ViewBox) -> None:
    for view in (0, 1, 9):
        assert draw_view(view, str(view), view, height=height, width=width, crop="center", size=size) == box


def test_center_is_resizing_to_eight_sevenths_and_cutting_the_middle() -> None:
    picture = photo_pixels(5, height=512, width=720)
    box = draw_view(0, "k", 0, height=512, width=720, crop="center", size=224)
    resized = Image.fromarray(picture).resize((360, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((68, 16, 292, 240)), np.int16)
    view = apply_view(tensor(picture), box, 224).permute(1, 2, 0).numpy().astype(np.int16)
    # Only the outermost pixels differ: there the crop ends and no neighbours are seen.
    assert abs(view - expected)[4:-4, 4:-4].max() <= 3


@pytest.mark.parametrize(
    "box",
    [
        ViewBox(20, 30, 340, 400, False),
        ViewBox(0, 0, 375, 500, True),
        ViewBox(100, 100, 60, 70, False),
        ViewBox(5, 7, 224, 224, True),
        ViewBox(370, 490, 1, 2, False),
    ],
)
def test_views_are_close_to_pillows(box: ViewBox) -> None:
    picture = photo_pixels(6, height=375, width=500)
    crop = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = Image.fromarray(picture).crop(crop).resize((224, 224), Image.Resampling.BICUBIC)
    if box.hflip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = apply_view(tensor(picture), box, 224)
    assert (view.dtype, view.shape, view.is_contiguous()) == (torch.uint8, (3, 224, 224), True)
    difference = abs(view.permute(1, 2, 0).numpy().astype(np.int16) - np.asarray(expected, np.int16))
    assert difference.max() <= 3
    assert difference.mean() < 0.3


def test_a_view_does_not_depend_on_memory_layout() -> None:
    picture = tensor(photo_pixels(8, height=120, width=90))
    box = ViewBox(3, 5, 100, 70, True)
    view = apply_view(picture, box, 64)
    assert torch.equal(view, apply_view(picture.contiguous(), box, 64))
    assert torch.equal(view, apply_view(picture.transpose(1, 2).contiguous().transpose(1, 2), box, 64))


def test_resizing_is_pinned() -> None:
    # Fixed-point arithmetic: the same bits with AVX-512, AVX2 and none. Raise ROWS_VERSION if this changes.
    values = np.arange(90 * 120 * 3, dtype=np.int64)
    picture = tensor((values * values % 251).astype(np.uint8).reshape(90, 120, 3))
    digest = hashlib.sha256()
    for box in (ViewBox(3, 5, 80, 100, False), ViewBox(0, 0, 90, 120, True), ViewBox(10, 10, 20, 16, False)):
        digest.update(apply_view(picture, box, 48).numpy().tobytes())
    assert digest.hexdigest() == "185a8a1350ca686fa1e48900d712f11a6edb2e4d4a9d82bb9268902c0b0ac97d"


@pytest.mark.parametrize("size", [16, 224])
def test_a_stored_view_is_read_back(size: int) -> None:
    view = tensor(photo_pixels(9, height=size, width=size)).contiguous()
    data = encode_view(view)
    assert data == encode_view(view)
    decoded = decode_view(data)
    assert (decoded.dtype, decoded.shape, decoded.is_contiguous()) == (torch.uint8, (3, size, size), True)
    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(stored))
    assert isinstance(stored, JpegImageFile)
    by_pillow = Image.open(io.BytesIO(encode(photo_pixels(9, height=size, width=size), quality=95)))
    assert isinstance(by_pillow, JpegImageFile)
    assert stored.quantization == by_pillow.quantization
    with pytest.raises(ContentError):
        decode_view(data[:-20])
