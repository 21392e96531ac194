"""Selectors that know classes: where in a picture a linear probe's answer comes from.

A probe reads the mean of an encoder's last map, so that Grad-CAM is its weights times each place of the map (where all
that speaks against the class counts too, as a rank is wanted of every patch). The teacher has a second one: what its
class token attends to in the last block, times the gradient of the answer, summed over heads.

Shape suffixes: N pictures, S their side in pixels, L patches, D and E widths of features, T tokens (L and a class
token).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks._scene_probe import Lite0, square_means
from patchsieve.pipeline.images.patches import normalise, patchify
from patchsieve.pipeline.images.views import ViewBox, apply_view
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.learning.agreement import Scores
from patchsieve.ranker.prove.probe import Probe


class Look(Protocol):
    """Pictures as a frozen encoder sees them."""

    @property
    def features(self) -> NDArray[np.float32]:
        """What a probe reads, float32 `[N, E]`."""
        ...

    def answers(self, probe: Probe) -> NDArray[np.int64]:
        """The class that the probe takes each picture for, int64 `[N]`."""
        ...

    def maps(self, probe: Probe) -> dict[str, Scores]:
        """Scores of all patches, float32 `[N, L]` by selector, of the class that the probe takes each picture for."""
        ...


class Eye(Protocol):
    """A frozen encoder; pictures are uint8 `[N, 3, S, S]`."""

    def __call__(self, pixels_N3SS: Tensor) -> Look:
        """Look at pictures."""
        ...


class TeacherEye:
    """The teacher's encoder, which sees pictures at its own side: its class token, and the mean of the others."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        self._model = model

    def __call__(self, pixels_N3SS: Tensor) -> _TeacherLook:
        """See `Eye`."""
        config = self._model.config
        patches_NLP = patches_of(pixels_N3SS, config.grid, config.patch_size)
        x_NTD, attention_NHTT = self._before(patches_NLP)
        with torch.no_grad():
            features_NE = _read(self.finish(x_NTD, attention_NHTT)).numpy()
        return _TeacherLook(self, x_NTD, attention_NHTT, features_NE)

    @torch.no_grad()
    def _before(self, patches_NLP: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that the last block gets `[N, T, D]`, and its attention `[N, heads, T, T]`."""
        seen: list[Tensor] = []
        last: Any = self._model.blocks[-1]
        handle = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        count, positions = patches_NLP.shape[:2]
        try:
            self._model.encode(normalise(patches_NLP), torch.arange(positions).expand(count, -1))
        finally:
            handle.remove()
        query, key, _ = self._cut(seen[0])
        return seen[0], (query @ key.transpose(-2, -1) * last.attn.scale).softmax(-1)

    def finish(self, x_NTD: Tensor, attention_NHTT: Tensor) -> Tensor:
        """What leaves the encoder with this attention in its last block, `[N, T, D]`."""
        last: Any = self._model.blocks[-1]
        mixed_NTD = (attention_NHTT @ self._cut(x_NTD)[2]).transpose(1, 2).flatten(2)
        x_NTD = x_NTD + last.attn.proj(mixed_NTD)
        latent: Tensor = self._model.norm(x_NTD + last.mlp(last.norm2(x_NTD)))
        return latent

    def _cut(self, x_NTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the last block, `[N, heads, T, D / heads]` each."""
        last: Any = self._model.blocks[-1]
        qkv = last.attn.qkv(last.norm1(x_NTD))
        query, key, value = qkv.unflatten(2, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value


@dataclasses.dataclass(frozen=True, eq=False)
class _TeacherLook:
    """What the last block gets, `[N, T, D]`, its attention `[N, heads, T, T]`, and what a probe reads."""

    eye: TeacherEye
    tokens: Tensor
    attention: Tensor
    features: NDArray[np.float32]

    def answers(self, probe: Probe) -> NDArray[np.int64]:
        """See `Look`."""
        return probe.predict(self.features)

    def maps(self, probe: Probe) -> dict[str, Scores]:
        """See `Look`."""
        to_NE = directions(probe, self.answers(probe))
        with torch.enable_grad():
            attention_NHTT = self.attention.clone().requires_grad_()
            latent_NTD = self.eye.finish(self.tokens, attention_NHTT)
            (gradient_NHTT,) = torch.autograd.grad((_read(latent_NTD) * to_NE).sum(), attention_NHTT)
        attended_NL = (gradient_NHTT * self.attention)[:, :, 0, 1:].sum(1)
        cam_NL = torch.einsum("nld,nd->nl", latent_NTD.detach()[:, 1:], to_NE.chunk(2, dim=1)[1])
        return {"teacher attention of a class": attended_NL.numpy(), "teacher Grad-CAM": cam_NL.numpy()}


class Lite0Eye:
    """EfficientNet-Lite0 with ImageNet weights, which sees pictures as large as they are: the mean of its last map.

    `grid`: of the patches that are scored. Of pictures of 448 px its map has a value for each of 14 x 14.
    """

    def __init__(self, grid: int) -> None:
        self._lite, self._grid = Lite0(), grid

    def __call__(self, pixels_N3SS: Tensor) -> Lite0Look:
        """See `Eye`."""
        return Lite0Look(self._lite.maps(pixels_N3SS), self._grid)


@dataclasses.dataclass(frozen=True, eq=False)
class Lite0Look:
    """The last map, float32 `[N, D, H, W]`."""

    map: Tensor
    grid: int

    @property
    def features(self) -> NDArray[np.float32]:
        """See `Look`."""
        means_ND: NDArray[np.float32] = self.map.mean((2, 3)).numpy()
        return means_ND

    def answers(self, probe: Probe) -> NDArray[np.int64]:
        """See `Look`; that of the square of the map whose share of the softmax is the highest."""
        means_NQD = square_means(self.map)
        count, squares, width = means_NQD.shape
        shares_NQC = probe.shares(means_NQD.reshape(-1, width).numpy()).reshape(count, squares, -1)
        answers_N: NDArray[np.int64] = shares_NQC.max(axis=1).argmax(axis=1)
        return answers_N

    def maps(self, probe: Probe) -> dict[str, Scores]:
        """See `Look`."""
        cam_NHW = torch.einsum("ndhw,nd->nhw", self.map, directions(probe, self.answers(probe)))
        cam_NL = interpolate(cam_NHW[:, None], size=(self.grid, self.grid), mode="bilinear").flatten(1)
        return {"Lite0 Grad-CAM": cam_NL.numpy()}


def patches_of(pixels_N3SS: Tensor, grid: int, patch_size: int) -> Tensor:
    """Patches `[N, L, P]` of pictures that are resized to the grid's side."""
    side = pixels_N3SS.shape[2]
    box = ViewBox(0, 0, side, side, hflip=False)
    return patchify(torch.stack([apply_view(one, box, grid * patch_size) for one in pixels_N3SS]), patch_size)


def directions(probe: Probe, answers_N: NDArray[np.int64]) -> Tensor:
    """The gradient of the logit of each picture's answer in its features, float32 `[N, E]`."""
    weights_NE = probe.weights[answers_N] / probe.scale
    return torch.from_numpy(weights_NE.astype(np.float32))


def _read(latent_NTD: Tensor) -> Tensor:
    return torch.cat([latent_NTD[:, 0], latent_NTD[:, 1:].mean(dim=1)], dim=1)
