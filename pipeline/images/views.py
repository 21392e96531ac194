"""From pixels to a view: draw a crop, apply it; and views as JPEG.

Drawing a crop is apart from applying it, so that a view can be replayed from its row. Everything here is a pure
function of its arguments and safe to call from many threads.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.randomness import KeyedRandom
from patchsieve.pipeline.row_config import Crop

VIEW_QUALITY = 95


_ENCODE_JPEG = torch.ops.image.encode_jpeg


@dataclasses.dataclass(frozen=True)
class ViewBox:
    """A crop in decoded pixels, and whether it is mirrored (left to right) after resizing."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool


_SCALE = (0.2, 1.0)
_RATIO = (3 / 4, 4 / 3)
_LOG_RATIO = 0.28768207245178096  # ln(4/3) = -ln(3/4)
_TRIES = 10


def draw_view(
    seed: int, sample_key: str, view: int, *, height: int, width: int, crop: Crop, size: int
) -> ViewBox:
    """The crop of one view of an image of `height` x `width` pixels.

    `random`: a share of 0.2 to 1 of the area at an aspect ratio of 3/4 to 4/3, drawn log-uniformly, up to ten
    times until it fits, else the largest central crop of an allowed ratio (Szegedy et al., "Going deeper
    with convolutions", CVPR 2015, as RandomResizedCrop has it); mirrored in half of the cases. `center`: see
    `center_box`; the seed, the key and the view do not matter.
    """
    if crop == "center":
        return center_box(height, width, size=size)
    # All numbers are drawn at once, so that a try that does not fit shifts nothing behind it.
    numbers = KeyedRandom(seed, sample_key, "crop", view).uniform(2 * _TRIES + 3).tolist()
    place_y, place_x, mirror = numbers[2 * _TRIES :]
    box_height, box_width = 0, 0
    for share, ratio in zip(numbers[: 2 * _TRIES : 2], numbers[1 : 2 * _TRIES : 2], strict=True):
        area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * share)
        aspect = _exp(_LOG_RATIO * (2 * ratio - 1))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = (int(place_y * (height - box_height + 1)), int(place_x * (width - box_width + 1)))
            return ViewBox(top, left, box_height, box_width, mirror < 0.5)
    box_height = min(height, max(1, round(width / _RATIO[0])))
    box_width = min(width, max(1, round(height * _RATIO[1])))
    return ViewBox((height - box_height) // 2, (width - box_width) // 2, box_height, box_width, mirror < 0.5)


def center_box(height: int, width: int, *, size: int) -> ViewBox:
    """The centre crop of an image of `height` x `width` pixels, for views of `size` x `size`; never mirrored.

    It is what remains when the shorter side is resized to 8/7 of `size` and a square of `size` is cut from the middle
    (7/8 of the shorter side at 224).
    """
    shorter, resized = min(height, width), (size * 8 + 3) // 7
    side = max(1, (2 * shorter * size + resized) // (2 * resized))
    return ViewBox((height - side) // 2, (width - side) // 2, side, side, hflip=False)


def _exp(x: float) -> float:
    """e^x for |x| < 0.3 from plain arithmetic: the last bit of a library's own differs between machines."""
    total = 1.0
    for degree in range(14, 0, -1):
        total = 1.0 + x * total / degree
    return total


def apply_view(image: Tensor, box: ViewBox, size: int) -> Tensor:
    """The view of an image: uint8 `[3, H, W]` to contiguous uint8 `[3, size, size]`.

    Antialiased bicubic, in fixed point on the uint8 pixels themselves: torch's kernel gives the same bits
    with and without vector instructions. Mirrored after resizing.
    """
    crop = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    view = interpolate(crop[None], size=(size, size), mode="bicubic", antialias=True)[0]
    return (view.flip(2) if box.hflip else view).contiguous()


def encode_view(view: Tensor) -> bytes:
    """A view, uint8 `[3, S, S]`, as a JPEG of quality 95."""
    encoded: Tensor = _ENCODE_JPEG(view.contiguous(), VIEW_QUALITY)
    return encoded.numpy().tobytes()


def decode_view(data: bytes) -> Tensor:
    """The pixels that `encode_view` left, contiguous uint8 `[3, S, S]`; ContentError for damaged bytes."""
    return decode_image(data).contiguous()
