"""From an image file to a view: decode, draw a crop, apply it.

Drawing a crop is apart from applying it, so that a view can be replayed from its row. Everything here is a
pure function of its arguments and safe to call from many threads.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re
import warnings

import numpy as np
import torch
import torchvision.io  # registers the decoders below
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from patchsieve.pipeline.config import Crop
from patchsieve.pipeline.errors import ContentError, InfrastructureError, PatchsieveError, UserError
from patchsieve.pipeline.image_header import ImageHeader, exif_orientation, read_header
from patchsieve.pipeline.randomness import KeyedRandom

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: 512 MiB as RGB, where Pillow's own protection refuses too."""

VIEW_QUALITY = 95

# The operators behind torchvision.io, whose functions add a deprecation warning to each call. Its PNG decoder
# is left out: a damaged file ends the process (torchvision 0.29: segmentation fault); Pillow's is as fast.
_DECODERS = {"jpeg": torch.ops.image.decode_jpeg, "webp": torch.ops.image.decode_webp}
_ENCODE_JPEG = torch.ops.image.encode_jpeg
_RGB = torchvision.io.ImageReadMode.RGB.value

# Named, because Pillow would otherwise try every format it knows, and some of those start other programs.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")

_OUT_OF_MEMORY = re.compile(r"not enough memory|allocate memory|insufficient memory", re.IGNORECASE)
_SOURCE_LINE = re.compile(r"^.*?\.(?:cpp|h):\d+, ", re.DOTALL)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels of an image file as RGB, uint8 `[3, H, W]`, upright (EXIF orientation applied).

    The format is told by the first bytes, never by a name. torchvision reads JPEG and still WebP, Pillow
    everything that torchvision cannot, or cannot safely: PNG (a damaged one would end the process) and GIF
    (it would decode every frame). Of an animation the first frame is taken. Alpha is dropped, as by Pillow's
    `convert("RGB")`: the colour stored under it stays. Of 16-bit values the high byte is taken. Memory may be
    laid out with channels last.

    Raises ContentError, with the reason, for a file that is empty, cut, damaged, of no known format or larger
    than `max_pixels`; InfrastructureError when memory runs out.
    """
    if not data:
        raise ContentError("empty file")
    try:
        header = read_header(data)
        if header is None or header.format not in _DECODERS or header.animated:
            return _decode_with_pillow(data, header, max_pixels)
        _check_size(header.height, header.width, max_pixels)
        try:
            return _upright(_decode_with_torchvision(data, header), header.orientation)
        except RuntimeError as error:
            if _OUT_OF_MEMORY.search(str(error)):
                raise
            return _second_opinion(data, header, max_pixels, _reason(error))
    except PatchsieveError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files, none may stop the run
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
            raise InfrastructureError(f"out of memory while decoding an image: {_reason(error)}") from error
        raise ContentError(_reason(error)) from error


def _decode_with_torchvision(data: bytes, header: ImageHeader) -> Tensor:
    # A copy, since torch has no read-only tensors; it costs microseconds.
    pixels: Tensor = _DECODERS[header.format](torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
    if pixels.shape != (3, header.height, header.width):
        raise ContentError(f"{header.format} decodes to another size than its header says")
    return pixels


def _second_opinion(data: bytes, header: ImageHeader, max_pixels: int, reason: str) -> Tensor:
    """Pillow's reading of a file that torchvision refuses; torchvision's reason if Pillow refuses it too."""
    try:
        return _decode_with_pillow(data, header, max_pixels)
    except (MemoryError, UserError):
        raise
    except Exception as error:
        raise ContentError(f"{header.format}: {reason}") from error


def _decode_with_pillow(data: bytes, header: ImageHeader | None, max_pixels: int) -> Tensor:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process, so damaged images would pass for"
            " good ones: set it to False"
        )
    _quieten_pillow()
    try:
        image = Image.open(io.BytesIO(data), formats=_pillow_formats())
    except UnidentifiedImageError:
        known = f"{header.format} that no decoder can read" if header else "not an image of a known format"
        raise ContentError(known) from None
    except Image.DecompressionBombError as error:
        raise ContentError(f"image too large: {error}") from None
    with image:
        _check_size(image.height, image.width, max_pixels)
        # A TIFF's own orientation is applied by Pillow as it loads.
        orientation = header.orientation if header else exif_orientation(image.info.get("exif") or b"")
        image.load()
        pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
        return _upright(pixels, 1 if image.format == "TIFF" else orientation)


@functools.cache
def _pillow_formats() -> tuple[str, ...]:
    """Those of our formats that this Pillow has: AVIF came late and may be left out of a build."""
    Image.init()
    return tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A loaded image as uint8 `[H, W, 3]`."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips these at 255; of colours with 16 bits it takes the high byte.
        gray = np.asarray(image)
        if gray.min() < 0 or gray.max() > 65535:
            raise ContentError("gray values beyond 16 bits, which have no defined white")
        return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ContentError("floating-point pixels, which have no defined white")
    # Pillow would look for the nearest colour to the transparent one, and warn; dropping alpha needs neither.
    image.info.pop("transparency", None)
    return np.array(image.convert("RGB"))


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ContentError(f"image too large: {width} x {height} pixels, the limit is {max_pixels}")
    if not height * width:
        raise ContentError("image without pixels")


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation, which says how the stored picture was turned or mirrored."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    mirrored = [axis for axis, when in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in when]
    return pixels.flip(mirrored) if mirrored else pixels


def _quieten_pillow() -> None:
    """Hide the warnings that Pillow raises on odd files: what matters comes as an error or in the pixels.

    A filter that stays: `warnings.catch_warnings` sets and takes back one that all threads share.
    """
    entry = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if warnings.filters[:1] != [entry]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _reason(error: Exception) -> str:
    """One line without the path of the decoder's source; never empty."""
    text = _SOURCE_LINE.sub("", str(error)).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


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
    with convolutions", CVPR 2015, as RandomResizedCrop has it); mirrored in half of the cases. `center`: what
    remains when the shorter side is resized to 8/7 of `size` and a square of `size` is cut from the middle
    (7/8 of the shorter side at 224); never mirrored.
    """
    if crop == "center":
        shorter, resized = min(height, width), (size * 8 + 3) // 7
        side = max(1, (2 * shorter * size + resized) // (2 * resized))
        return ViewBox((height - side) // 2, (width - side) // 2, side, side, hflip=False)
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
