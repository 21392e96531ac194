"""A scorer with one of its savings undone, to see what each of them is worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchrank.pipeline.inference import OneDnnLinear
from patchrank.pipeline.removals import Without, others_of
from patchrank.pipeline.scoring import Scorer
from patchrank.pipeline.teacher.model import MaskedAutoencoder


class DecodeEach:
    """Removal `decoder` with nothing shared: every removal is a decoder pass of its own over fewer tokens."""

    def __init__(self, model: MaskedAutoencoder, visible: int) -> None:
        self.model = model
        self.others_VV = others_of(visible).to(model.cls_token.device)
        self.latents_VV = nn.functional.pad(self.others_VV + 1, (1, 0))

    def of(self, latent: Tensor, _patches_NVP: Tensor, visible_NV: Tensor, hidden_NH: Tensor) -> Without:
        return partial(self.without, latent, visible_NV, hidden_NH)

    def without(self, latent: Tensor, visible_NV: Tensor, hidden_NH: Tensor, removed_K: Tensor) -> Tensor:
        hidden = hidden_NH.shape[1]
        tokens = latent[:, self.latents_VV[removed_K]].flatten(0, 1)
        places = visible_NV[:, self.others_VV[removed_K]].flatten(0, 1)
        masked = hidden_NH[:, None].expand(-1, len(removed_K), -1).flatten(0, 1)
        predicted = self.model.decode(tokens, places, masked, hidden)
        return predicted.float().reshape(len(visible_NV), len(removed_K), hidden, -1)


def share_nothing(scorer: Any) -> None:
    """Without the shared first block."""
    scorer._removals = DecodeEach(scorer._model, scorer.visible)


def compute_unread(scorer: Any) -> None:
    """The last block computes all tokens, also those that nothing reads."""
    last = scorer._model.decoder_blocks[-1]
    whole = last.forward
    last.forward = lambda x, read=None: whole(x)[:, :read]


def separate_gelu(scorer: Any) -> None:
    """GELU as an operation of its own."""
    for part in scorer._model.modules():
        if getattr(getattr(part, "fc1", None), "gelu", False):
            part.fc1.gelu, part.act = False, nn.GELU()


class PlainLinear(nn.Module):
    """PyTorch's own linear layer with the same weights."""

    def __init__(self, linear: OneDnnLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def plain_linear(scorer: Any) -> None:
    """Linear layers by PyTorch's choice of library, GELU apart."""
    separate_gelu(scorer)
    for module in list(scorer._model.modules()):
        for name, child in module.named_children():
            if isinstance(child, OneDnnLinear) and not isinstance(module, PlainLinear):
                setattr(module, name, PlainLinear(child))


UNDO: dict[str, Callable[[Any], None]] = {
    "first block shared": share_nothing,
    "unread tokens left out": compute_unread,
    "GELU in the linear layer": separate_gelu,
    "oneDNN for linear layers": plain_linear,
}


@torch.inference_mode()
def without_trick(name: str, make: Callable[[], Scorer]) -> Scorer:
    """A new scorer that lacks it."""
    scorer = make()
    UNDO[name](scorer)
    return scorer
