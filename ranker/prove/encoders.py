"""Frozen models that turn what is left of images into features: a teacher's encoder, or any model of timm.

Shape suffixes: N images, K tokens, D features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
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
from patchsieve.ranker.prove.tokens import Tokens, by_count, encode_tokens, encoder_flops
from patchsieve.ranker.prove.views import View

_BATCH = 64


class Encoder(Protocol):
    """A frozen model."""

    def features(self, views: Sequence[View]) -> NDArray[np.float32]:
        """Features of each image, float32 `[N, D]`."""
        ...

    def flops(self, tokens: float) -> float:
        """Floating-point operations of one image of so many tokens, a product and a sum being two."""
        ...


class TeacherEncoder:
    """A masked autoencoder's encoder on the tokens that are left: its class token, and the mean of the others."""

    def __init__(self, model: MaskedAutoencoder, device: torch.device) -> None:
        self._model, self._device = prepare_teacher(model, "fp32", device), device
        self._config: TeacherConfig = model.config

    @torch.inference_mode()
    def features(self, views: Sequence[View]) -> NDArray[np.float32]:
        """See `Encoder`. Images of equally many tokens go together, so that none is padded."""
        features_ND = np.empty((len(views), 2 * self._config.width), np.float32)
        tokens = [Tokens.of(view) for view in views]
        for rows in by_count(tokens, range(len(views)), _BATCH):
            features_ND[rows] = self._encode([tokens[row] for row in rows]).cpu().numpy()
        return features_ND

    def flops(self, tokens: float) -> float:
        """See `Encoder`; calculated from the encoder's sizes."""
        config = self._config
        return encoder_flops(
            tokens=tokens,
            patch_values=config.patch_values,
            width=config.width,
            depth=config.depth,
            mlp_ratio=config.mlp_ratio,
        )

    def _encode(self, tokens: Sequence[Tokens]) -> Tensor:
        patches_NKP = normalise(torch.stack([one.patches for one in tokens]).to(self._device))
        places_NK2 = torch.stack([one.places for one in tokens]).to(self._device)
        return encode_tokens(self._model, patches_NKP, places_NK2, self._config.grid)


class TimmEncoder:
    """A model of timm on whole images, without its classifier; what was dropped has its mean colour there."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """`model`: as `load_backbone` gives it."""
        self._model, self._device = model.to(device), device
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A model of timm without its classifier, frozen; `digest`: SHA-256 of its weights."""

    name: str
    model: nn.Module
    digest: str


def load_backbone(spec: str) -> Backbone:
    """`spec`: NAME, with the weights that timm has, or NAME=FILE; raises UserError where it cannot be."""
    name, _, path = spec.partition("=")
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
    model.eval().requires_grad_(False)
    return Backbone(name=name, model=model, digest=_weights_digest(model))


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 of the weights by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
