"""From the bytes of an image to RGB pixels, upright and of a size that was checked before.

A pure function of its arguments, safe to call from many threads.
"""

from __future__ import annotations

import functools
import io
import re
import warnings

import numpy as np
import torch
import torchvision.io
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from patchsieve.pipeline.errors import ContentError, InfrastructureError, PatchsieveError, UserError
from patchsieve.pipeline.images.bounded import bounded
from patchsieve.pipeline.images.header import ImageHeader, exif_orientation, read_header

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: 512 MiB as RGB, where Pillow's own protection refuses too."""


# The operators behind torchvision.io, whose functions add a deprecation warning to each call. Its PNG decoder
# is left out: a damaged file ends the process (torchvision 0.29: segmentation fault); Pillow's is as fast.
_DECODERS = {"jpeg": torch.ops.image.decode_jpeg, "webp": torch.ops.image.decode_webp}


_RGB = torchvision.io.ImageReadMode.RGB.value

# Named, because Pillow would otherwise try every format it knows, and some of those start other programs.
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")

# Tags of a TIFF: bits of each sample, what 0 means, and whether colours lie in planes of their own.
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
_ORIENTATION = 274

_OUT_OF_MEMORY = re.compile(r"not enough memory|allocate memory|insufficient memory", re.IGNORECASE)
_SOURCE_LINE = re.compile(r"^.*?\.(?:cpp|h):\d+, ", re.DOTALL)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Pixels of an image file as RGB, uint8 `[3, H, W]`, upright (EXIF orientation applied).

    The format is told by the first bytes, never by a name. torchvision reads JPEG and still WebP, Pillow
    everything that torchvision cannot, or cannot safely: PNG (a damaged one would end the process) and GIF
    (it would decode every frame). Of an animation the first frame is taken. Alpha is dropped, as by Pillow's
    `convert("RGB")`: the colour stored under it stays. Of 16-bit values the high byte is taken. Memory may be
    laid out with channels last.

    Raises ContentError, with the reason, for a file that is empty, cut, damaged, of no known format, larger than
    `max_pixels`, or that would take minutes; InfrastructureError when memory runs out.
    """
    if not data:
        raise ContentError("empty file")
    try:
        header = read_header(data)
        if header is None:
            # What these formats may take, nothing in their first bytes tells.
            return bounded(lambda: _decode_with_pillow(data, None, max_pixels))
        if header.format not in _DECODERS or header.animated:
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


def size_of(data: bytes) -> int:
    """Pixels that an image file announces; 0 for one that announces none, which `decode_image` refuses."""
    try:
        header = read_header(data, scans=False)  # `decode_image` counts them
        if header is not None:
            return header.height * header.width
        _quieten_pillow()
        with Image.open(io.BytesIO(data), formats=_pillow_formats()) as image:
            return image.height * image.width
    except Exception:  # whatever is wrong is said where it is decoded
        return 0


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
        _refuse_misread_tiff(image)
        # A TIFF's own orientation is applied by Pillow as it loads.
        orientation = header.orientation if header else exif_orientation(image.info.get("exif") or b"")
        image.load()
        pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
        return _upright(pixels, 1 if image.format == "TIFF" else orientation)


def _refuse_misread_tiff(image: Image.Image) -> None:
    """Raise ContentError for a TIFF that Pillow decodes to other pixels than the picture's, without a word."""
    tags = getattr(image, "tag_v2", {})
    if max(tags.get(_BITS, (1,))) <= 8:
        return
    if tags.get(_PHOTOMETRIC) == 0:
        raise ContentError("TIFF of 16 bits whose white is 0, which is not read")
    if tags.get(_PLANES) == 2:
        raise ContentError("TIFF of 16 bits with a plane for each colour, which is not read")


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
    # Converting what is RGB would copy it.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def pixels_of(image: Image.Image) -> Tensor:
    """Pixels of a Pillow image as `decode_image` gives those of its file; ContentError where that refuses it."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    return _upright(pixels, 1 if image.format == "TIFF" else orientation)


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
