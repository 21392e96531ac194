"""A ranker's folder as timm reads it: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm builds the same transformer from images: the places of patches are a parameter of its own, and the ranker's head
is its classifier, applied to every token (head `token`) or to the class token (head `cls`). Weights are stored under
timm's names, with the places beside them; `config.json` holds timm's fields beside ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from patchsieve.pipeline.images.patches import IMAGENET_MEAN, IMAGENET_STD
from patchsieve.ranker.model.ranker import Ranker

_PLACES = "pos_embed"
_OURS = "backbone."


def to_timm(ranker: Ranker, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's names, and the fixed places `[1, T, D]` in float32: zeros where a token has none."""
    backbone = ranker.backbone
    placeless = 0 if backbone.no_embed_class else backbone.num_prefix_tokens
    places = nn.functional.pad(ranker.position_embedding, (0, 0, placeless, 0))[None]
    return {name.removeprefix(_OURS): tensor for name, tensor in weights.items()} | {
        _PLACES: places.cpu().float()
    }


def from_timm(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the ranker's names, without the places."""
    return {
        name if name.startswith("head.") else f"{_OURS}{name}": value
        for name, value in stored.items()
        if name != _PLACES
    }


def timm_fields(ranker: Ranker, *, weights_file: str) -> dict[str, Any]:
    """What `config.json` tells timm."""
    config = ranker.config
    outputs = config.positions if config.head == "cls" else 1
    pool = "token" if config.head == "cls" else ""
    arguments = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "depth": config.depth,
        "global_pool": pool,
        # Which of its two final norms is the one follows from the pooling unless it is said.
        "fc_norm": not isinstance(ranker.backbone.fc_norm, nn.Identity),
    }
    return {
        "architecture": config.model.partition(".")[0],
        "num_classes": outputs,
        "num_features": ranker.backbone.embed_dim,
        "global_pool": pool,
        "model_args": {name: value for name, value in arguments.items() if value is not None},
        "pretrained_cfg": {
            "num_classes": outputs,
            "input_size": [3, config.image_size, config.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "hf_hub_filename": weights_file,
        },
    }
