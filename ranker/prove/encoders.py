"""Frozen models that turn what is left of images into features: a teacher's encoder, or any model of timm.

Shape suffixes: N images, K tokens, D features, L grid positions.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.config import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from patchsieve.pipeline.errors import UserError, first_line
from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder
from patchsieve.pipeline.teacher.ready import prepare_teacher
from patchsieve.ranker.prove.views import View

_BATCH = 64


class Encoder(Protocol):
    """A frozen model. `fields`: what of it can change a feature, by name."""

    name: str
    fields: dict[str, str]

    def features(self, views: Sequence[View]) -> NDArray[np.float32]:
        """Features of each image, float32 `[N, D]`."""
        ...

    def flops(self, tokens: float) -> float:
        """Floating-point operations of one image of so many tokens, a product and a sum being two."""
        ...


class TeacherEncoder:
    """A masked autoencoder's encoder on the tokens that are left: its class token, and the mean of the others."""

    def __init__(self, model: MaskedAutoencoder, name: str, digest: str, device: torch.device) -> None:
        self.name, self.fields = name, {"encoder": digest}
        self._model, self._device = prepare_teacher(model, "fp32", device), device
        self._config: TeacherConfig = model.config

    @torch.inference_mode()
    def features(self, views: Sequence[View]) -> NDArray[np.float32]:
        """See `Encoder`. Images of equally many tokens go together, so that none is padded."""
        by_count = defaultdict(list)
        for place, view in enumerate(views):
            by_count[len(view.patches)].append(place)
        features_ND = np.empty((len(views), 2 * self._config.width), np.float32)
        for places in by_count.values():
            for start in range(0, len(places), _BATCH):
                rows = places[start : start + _BATCH]
                features_ND[rows] = self._encode([views[row] for row in rows]).cpu().numpy()
        return features_ND

    def flops(self, tokens: float) -> float:
        """See `Encoder`; calculated from the encoder's sizes."""
        config, length = self._config, tokens + 1
        width = config.width
        block = length * (4 + 2 * config.mlp_ratio) * width**2 + 2 * length**2 * width
        return 2 * (tokens * config.patch_values * width + config.depth * block)

    def _encode(self, views: Sequence[View]) -> Tensor:
        model = self._model
        patches_NKP = normalise(torch.stack([view.patches for view in views]).to(self._device))
        places_NK2 = torch.stack([view.places for view in views]).to(self._device)
        x_NKD = model.patch_embed(patches_NKP)
        x_NKD = x_NKD + positions_at(model.pos_embed[0, 1:], self._config.grid, places_NK2)
        first_N1D = (model.cls_token + model.pos_embed[:, :1]).expand(len(x_NKD), -1, -1)
        x = torch.cat([first_N1D, x_NKD], dim=1)
        for block in model.blocks:
            x = block(x)
        latent: Tensor = model.norm(x)
        return torch.cat([latent[:, 0], latent[:, 1:].mean(dim=1)], dim=1)


def positions_at(table_LD: Tensor, grid: int, places: Tensor) -> Tensor:
    """Position embeddings `[..., D]` at places `[..., 2]` between those of a grid, bilinear; at its points exactly."""
    places = places.clamp(0, grid - 1)
    low = places.floor().long().clamp(max=max(0, grid - 2))
    share = places - low
    high = (low + 1).clamp(max=grid - 1)
    found = torch.zeros(*places.shape[:-1], table_LD.shape[1], device=table_LD.device)
    for row, row_share in ((low[..., 0], 1 - share[..., 0]), (high[..., 0], share[..., 0])):
        for column, column_share in ((low[..., 1], 1 - share[..., 1]), (high[..., 1], share[..., 1])):
            found += table_LD[row * grid + column] * (row_share * column_share)[..., None]
    return found


class TimmEncoder:
    """A model of timm on whole images, without its classifier; what was dropped has its mean colour there."""

    def __init__(self, spec: str, device: torch.device) -> None:
        """`spec`: NAME, with the weights that timm has, or NAME=FILE; raises UserError where it cannot be."""
        self.name, _, path = spec.partition("=")
        self._model = _timm_model(self.name, path).to(device).eval().requires_grad_(False)
        self._device = device
        self.fields = {"encoder": f"{self.name} {_weights_digest(self._model)}"}
        about = resolve_model_data_config(self._model)
        self._size = int(about["input_size"][1])
        self._mean = torch.tensor(about["mean"], device=device).view(3, 1, 1)
        self._deviation = torch.tensor(about["std"], device=device).view(3, 1, 1)
        self._flops = math.nan

    @torch.inference_mode()
    def features(self, views: Sequence[View]) -> NDArray[np.float32]:
        """See `Encoder`. Images are resized to the size that the model was trained at."""
        found = []
        for start in range(0, len(views), _BATCH):
            images = torch.stack([view.image() for view in views[start : start + _BATCH]])
            if images.shape[-1] != self._size:
                images = interpolate(images, size=(self._size, self._size), mode="bicubic", antialias=True)
            x = (images.to(self._device).float() / 255 - self._mean) / self._deviation
            found.append(self._model(x).cpu().numpy())
        features_ND: NDArray[np.float32] = np.concatenate(found)
        return features_ND

    def flops(self, tokens: float) -> float:
        """See `Encoder`; counted by torch. A model that reads whole images saves nothing by what is dropped."""
        if math.isnan(self._flops):
            blank = torch.zeros(1, 3, self._size, self._size, device=self._device)
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                self._model(blank)
            self._flops = float(counter.get_total_flops())
        return self._flops


def _timm_model(name: str, path: str) -> nn.Module:
    if ":" in name or "/" in name or not timm.is_model(name):
        raise UserError(f"--backbone: timm has no model {name!r}")
    if path and not os.path.isfile(path):
        raise UserError(f"--backbone: there is no file {path!r}: give NAME=FILE, a .safetensors or .pth")
    published = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if not path and not (published and published.has_weights):
        raise UserError(f"--backbone: timm has no weights for {name}: give a file of them, as {name}=FILE")
    try:
        model: nn.Module = timm.create_model(name, pretrained=not path)
        if path:
            model.load_state_dict(load_state_dict(path, weights_only=True))
        model.reset_classifier(0)  # type: ignore[operator]
    except (
        Exception
    ) as error:  # names without weights, a hub out of reach, files of another model: each in its way
        raise UserError(f"--backbone {name}: cannot load its weights ({first_line(error)[:200]})") from None
    return model


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 of the weights by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
