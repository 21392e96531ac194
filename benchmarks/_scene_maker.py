"""Scenes with one known object: a photo in a feathered ellipse, somewhere on a background of the same sharpness.

Everything is drawn from (seed, number) alone. Shape suffixes: S side of a scene in pixels, H and W of a picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.randomness import KeyedRandom

Filling = Literal["object", "texture", "nothing"]

SMALLEST, LARGEST = 80, 160
"""Longer side of an object in pixels."""
PATCH = 16
LEAST_SIDE = 320
"""Of a background that fills 448 px; smaller tiles take smaller ones."""
FEATHER = 0.15
"""Of the ellipse's radius, over which it fades."""
_FULL_TILE = 448
_MOST_BLUR, _HALVINGS = 3.0, 8


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo's file; `short`: its shorter side in pixels."""

    key: str
    label: str
    data: bytes
    short: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """`pixels`: uint8 `[3, S, S]`; `alpha`: how much of each pixel is the object's, float32 `[S, S]`.

    `box`: top, left, height, width of the object in pixels; `background`: key of the photo under its middle;
    `sharpness`: of object and background as pasted.
    """

    pixels: Tensor
    alpha: Tensor
    box: tuple[int, int, int, int]
    label: str
    object: str
    background: str
    sharpness: tuple[float, float]


class Maker(Protocol):
    """Makes the scene of a number."""

    def __call__(self, number: int, filling: Filling = "object") -> Scene:
        """See `make_scene`."""
        ...


def make_scene(
    objects: Mapping[str, Sequence[Photo]],
    backgrounds: Sequence[Photo],
    *,
    size: int,
    tiles: int,
    seed: int,
    number: int,
    filling: Filling = "object",
) -> Scene:
    """The scene of this number: a class, a photo of it and backgrounds are drawn evenly.

    `objects`: photos by label. The background is one photo, or a mosaic of `tiles` x `tiles`. Scenes of one number and
    other fillings differ in the ellipse alone. Raises UserError without backgrounds that are large enough.
    """
    random = KeyedRandom(seed, "", "scene", number)
    kind, which, long, top, left = random.uniform(5).tolist()
    label = sorted(objects)[int(kind * len(objects))]
    photo = objects[label][int(which * len(objects[label]))]
    ground, keys = _ground(backgrounds, size // tiles, tiles, random)
    pasted = _resized(decode_image(photo.data), SMALLEST + int(long * (LARGEST - SMALLEST + 1)))
    height, width = pasted.shape[1:]
    top, left = _off_grid(top, size - height), _off_grid(left, size - width)
    alpha_HW = ellipse(height, width)
    pasted, ground, sharp = match_sharpness(pasted, alpha_HW, ground)
    inside = (slice(top, top + height), slice(left, left + width))
    if filling == "texture":
        pasted = texture_like(pasted, alpha_HW, KeyedRandom(seed, "", "texture", number))
    if filling != "nothing":
        under = ground[:, *inside]
        ground[:, *inside] = under + alpha_HW * (pasted - under)
    alpha = torch.zeros(size, size)
    alpha[inside] = alpha_HW
    middle = (top + height // 2) * tiles // size * tiles + (left + width // 2) * tiles // size
    return Scene(
        pixels=ground.round().clamp(0, 255).to(torch.uint8),
        alpha=alpha,
        box=(top, left, height, width),
        label=label,
        object=photo.key,
        background=keys[middle],
        sharpness=sharp,
    )


def ellipse(height: int, width: int) -> Tensor:
    """An ellipse that fills a rectangle: 1 within, 0 at its rim, smooth between; float32 `[height, width]`."""
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    depth = ((1 - torch.hypot(y[:, None], x[None])) / FEATHER).clamp(0, 1)
    return depth * depth * (3 - 2 * depth)


def sharpness(pixels_3HW: Tensor, weight_HW: Tensor | None = None) -> float:
    """Second over first differences of luminance, root mean squares: contrast cancels, blur lowers it."""
    luma = pixels_3HW.float().mean(0)
    down, right = luma.diff(dim=0)[:-1, :-2], luma.diff(dim=1)[:-2, :-1]
    bend = luma.diff(n=2, dim=0)[:, :-2].square() + luma.diff(n=2, dim=1)[:-2].square()
    weight = torch.ones_like(bend) if weight_HW is None else weight_HW[1:-1, 1:-1]
    slope = float((weight * (down.square() + right.square())).sum())
    return math.sqrt(float((weight * bend).sum()) / slope) if slope > 0 else 0.0


def match_sharpness(
    pasted: Tensor, alpha_HW: Tensor, ground: Tensor
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """The two with the sharper one blurred to the other's sharpness, by at most a sigma of 3 px; and what they have."""
    found, other = sharpness(pasted, alpha_HW), sharpness(ground)
    if found > other:
        pasted = _blurred_to(pasted, other, alpha_HW)
    else:
        ground = _blurred_to(ground, found, None)
    return pasted, ground, (sharpness(pasted, alpha_HW), sharpness(ground))


def texture_like(pasted: Tensor, alpha_HW: Tensor, random: KeyedRandom) -> Tensor:
    """Texture without an object: the picture's spectrum with random phases, and its mean and deviation of each colour
    within the ellipse; float32 `[3, H, W]`.
    """
    height, width = pasted.shape[1:]
    noise = torch.from_numpy(random.uniform(height * width)).reshape(height, width)
    phase = torch.fft.rfft2(noise - noise.mean()).angle()
    phase[0, 0] = 0
    spectrum = torch.fft.rfft2(pasted.double())
    texture = torch.fft.irfft2(spectrum * torch.exp(1j * phase), s=(height, width))
    for _ in range(3):  # clipping moves both a little
        mean, deviation = _moments(texture, alpha_HW)
        wanted_mean, wanted = _moments(pasted.double(), alpha_HW)
        scale = wanted / deviation.clamp(min=1e-6)
        texture = ((texture - mean) * scale + wanted_mean).clamp(0, 255)
    return texture.float()


def _moments(pixels_3HW: Tensor, alpha_HW: Tensor) -> tuple[Tensor, Tensor]:
    total = alpha_HW.double().sum()
    mean = (pixels_3HW * alpha_HW).sum((1, 2), keepdim=True) / total
    return mean, (((pixels_3HW - mean).square() * alpha_HW).sum((1, 2), keepdim=True) / total).sqrt()


def _blurred_to(pixels: Tensor, wanted: float, weight_HW: Tensor | None) -> Tensor:
    """The sigma is found on the mean of the colours, which blurs as they do."""
    luma, low, high = pixels.mean(0, keepdim=True), 0.0, _MOST_BLUR
    for _ in range(_HALVINGS):
        sigma = (low + high) / 2
        low, high = (sigma, high) if sharpness(_blurred(luma, sigma), weight_HW) > wanted else (low, sigma)
    return _blurred(pixels, high)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian, along one axis and then the other."""
    from torchvision.transforms.v2.functional import gaussian_blur  # loads PyTorch's compiler

    reach = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur(gaussian_blur(pixels, [reach, 1], [sigma, sigma]), [1, reach], [sigma, sigma])


def _resized(image: Tensor, longer: int) -> Tensor:
    """A photo whose longer side has so many pixels, float32 `[3, H, W]`."""
    height, width = image.shape[1:]
    scale = longer / max(height, width)
    shape = (max(PATCH, round(height * scale)), max(PATCH, round(width * scale)))
    resized = torch.nn.functional.interpolate(image[None], size=shape, mode="bicubic", antialias=True)[0]
    return resized.float()


def _off_grid(share: float, room: int) -> int:
    """One of the places 0 .. room that no patch begins at."""
    places = [place for place in range(room + 1) if place % PATCH]
    return places[int(share * len(places))]


def _ground(
    backgrounds: Sequence[Photo], side: int, tiles: int, random: KeyedRandom
) -> tuple[Tensor, list[str]]:
    """Squares of photos side by side, float32 `[3, S, S]`, and whose they are, row by row."""
    least = side * LEAST_SIDE / _FULL_TILE
    fitting = [photo for photo in backgrounds if photo.short >= least]
    if len(fitting) < tiles**2:
        raise UserError(
            f"{len(fitting)} of {len(backgrounds)} backgrounds have a short side of {least:.0f} px or more, "
            f"and a scene takes {tiles**2}: give more, or larger ones"
        )
    rows, keys = [], []
    order = random.permutation(len(fitting))
    for row in range(tiles):
        squares = []
        for column in range(tiles):
            photo = fitting[order[row * tiles + column]]
            place, mirror = random.uniform(2).tolist()
            squares.append(_square(decode_image(photo.data), place, mirror < 0.5, side))
            keys.append(photo.key)
        rows.append(torch.cat(squares, dim=2))
    return torch.cat(rows, dim=1).float(), keys


def _square(image: Tensor, place: float, mirrored: bool, side: int) -> Tensor:
    height, width = image.shape[1:]
    short = min(height, width)
    top, left = round(place * (height - short)), round(place * (width - short))
    return apply_view(image, ViewBox(top, left, short, short, hflip=mirrored), side)
