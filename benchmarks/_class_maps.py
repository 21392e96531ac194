"""Selectors that know classes: where in a picture a linear probe's answer comes from.

A probe reads the mean of an encoder's last map, so that Grad-CAM is its weights times each place of the map (where all
that speaks against the class counts too, as a rank is wanted of every patch). The teacher has a second one: what its
class token attends to in the last block, times the gradient of the answer, summed over heads.

Shape suffixes: N pictures, L patches, P values of a patch, D and E widths of features, T tokens (L and a class token).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks._scene_probe import Lite0
from patchsieve.pipeline.images.patches import normalise, unpatchify
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.ranker.learning.agreement import Scores
from patchsieve.ranker.prove.probe import Probe


class Eye(Protocol):
    """A frozen encoder."""

    def features(self, patches_NLP: Tensor) -> NDArray[np.float32]:
        """What a probe reads, float32 `[N, E]`."""
        ...

    def maps(self, patches_NLP: Tensor, probe: Probe) -> dict[str, Scores]:
        """Scores of all patches, float32 `[N, L]` by selector, of the class that the probe takes each picture for."""
        ...


class TeacherEye:
    """The teacher's encoder: its class token, and the mean of the others."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        self._model = model

    def features(self, patches_NLP: Tensor) -> NDArray[np.float32]:
        """See `Eye`."""
        with torch.no_grad():
            return _read(self._finish(*self._before(patches_NLP))).numpy()

    def maps(self, patches_NLP: Tensor, probe: Probe) -> dict[str, Scores]:
        """See `Eye`."""
        x_NTD, attention_NHTT = self._before(patches_NLP)
        with torch.enable_grad():
            attention_NHTT.requires_grad_()
            latent_NTD = self._finish(x_NTD, attention_NHTT)
            read_NE = _read(latent_NTD)
            to_NE = directions(probe, read_NE.detach().numpy())
            (gradient_NHTT,) = torch.autograd.grad((read_NE * to_NE).sum(), attention_NHTT)
        attended_NL = (gradient_NHTT * attention_NHTT.detach())[:, :, 0, 1:].sum(1)
        to_ND = to_NE.chunk(2, dim=1)[1]
        cam_NL = torch.einsum("nld,nd->nl", latent_NTD.detach()[:, 1:], to_ND)
        return {"teacher attention of a class": attended_NL.numpy(), "teacher Grad-CAM": cam_NL.numpy()}

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

    def _finish(self, x_NTD: Tensor, attention_NHTT: Tensor) -> Tensor:
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


class Lite0Eye:
    """EfficientNet-Lite0 with ImageNet weights: the mean of its last map."""

    def __init__(self, grid: int, patch_size: int) -> None:
        self._lite, self._grid, self._patch_size = Lite0(), grid, patch_size

    def features(self, patches_NLP: Tensor) -> NDArray[np.float32]:
        """See `Eye`."""
        return self._lite.maps(unpatchify(patches_NLP, self._patch_size)).mean((2, 3)).numpy()

    def maps(self, patches_NLP: Tensor, probe: Probe) -> dict[str, Scores]:
        """See `Eye`."""
        map_NDHW = self._lite.maps(unpatchify(patches_NLP, self._patch_size))
        to_ND = directions(probe, map_NDHW.mean((2, 3)).numpy())
        cam_NHW = torch.einsum("ndhw,nd->nhw", map_NDHW, to_ND)
        size = (self._grid, self._grid)
        cam_NL = interpolate(cam_NHW[:, None], size=size, mode="bilinear").flatten(1)
        return {"Lite0 Grad-CAM": cam_NL.numpy()}


def directions(probe: Probe, features_NE: NDArray[np.float32]) -> Tensor:
    """The gradient of the highest logit of each picture in its features, float32 `[N, E]`."""
    weights_NE = probe.weights[probe.predict(features_NE)] / probe.scale
    return torch.from_numpy(weights_NE.astype(np.float32))


def _read(latent_NTD: Tensor) -> Tensor:
    return torch.cat([latent_NTD[:, 0], latent_NTD[:, 1:].mean(dim=1)], dim=1)
