"""What stands out in its own picture: ridge leverage scores of the patches, among a teacher's features of all of them.

A patch has a high leverage where its features lie in directions that few others of the picture take: an object on
grass, and not the grass, however strong its texture. No label and no other picture is asked. Ridge leverage scores are
those of Alaoui and Mahoney, "Fast randomized kernel ridge regression with statistical guarantees" (NeurIPS 2015); the
ridge leaves directions out in which hardly anything varies.

Shape suffixes: N pictures, L patches, P values of a patch (p * p * 3), D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsieve.pipeline.images.patches import normalise
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

RIDGE = 0.03
"""Of the mean sum of squares along a direction that the features can vary in."""


@torch.inference_mode()
def feature_leverage(teacher: MaskedAutoencoder, patches_NLP: Tensor) -> Tensor:
    """Leverage of every patch (uint8 `[N, L, P]`, all visible) in the encoder's last features, float32 `[N, L]`."""
    count, positions, _ = patches_NLP.shape
    device = teacher.cls_token.device
    places_NL = torch.arange(positions, device=device).expand(count, -1)
    # On the processor: float64 is not everywhere, and singular features are no rounding error apart.
    latent_NLD = teacher.encode(normalise(patches_NLP.to(device)), places_NL)[:, 1:].cpu().double()
    return _leverage(latent_NLD - latent_NLD.mean(dim=1, keepdim=True)).float()


def _leverage(centred_NLD: Tensor) -> Tensor:
    """The diagonal of X (X'X + r)^-1 X', `[N, L]`."""
    positions, width = centred_NLD.shape[1:]
    gram_NDD = centred_NLD.mT @ centred_NLD
    ridge_N = RIDGE * gram_NDD.diagonal(dim1=1, dim2=2).sum(1) / min(positions, width)
    # Features that are all equal have no leverage, and still a solution.
    ridge_NDD = ridge_N.clamp_min(1e-12)[:, None, None] * torch.eye(width, dtype=gram_NDD.dtype)
    leverage_NL: Tensor = (centred_NLD * torch.linalg.solve(gram_NDD + ridge_NDD, centred_NLD.mT).mT).sum(2)
    return leverage_NL
