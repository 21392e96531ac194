"""The transformer of a ranker: any plain vision transformer of timm, and the weights that it starts from.

Position embeddings of timm are taken out: a ranker adds fixed ones (see `ranker.py`), which fit any grid.
"""

from __future__ import annotations

import os
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models import load_state_dict
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from patchsieve.pipeline.errors import UserError, first_line

TIMM_WEIGHTS = "timm"
"""Initial weights: those that timm names for the model, from the Hugging Face hub or its cache."""

_EXAMPLES = "vit_tiny_patch16_224, vit_small_patch16_224 and vit_base_patch16_224 are such models"


def build_backbone(
    name: str,
    *,
    image_size: int,
    patch_size: int,
    depth: int | None = None,
    weights: str | None = None,
    drawn: bool = True,
) -> VisionTransformer:
    """A plain ViT with a class token, without position embeddings and classifier.

    `image_size` and `patch_size`, in pixels, overrule those of the name. `depth`: only the first blocks, None for all.
    `weights`: None for random ones (torch's global generator), "timm" for those that timm publishes for this name (a
    tag such as `.augreg_in21k` chooses among them), or the path of a `.safetensors` or `.pth` of the same
    architecture; patch embeddings of another size are resampled by timm, heads and position embeddings left out.
    Without `drawn`, random weights are left as they come, for those that are loaded next.

    Raises UserError, one line, for a name that timm does not know, a model of another kind, and weights that cannot
    be fetched, read or do not fit.
    """
    published = _published(name)
    if weights == TIMM_WEIGHTS and not published:
        # Some versions of timm would go on with random ones.
        raise UserError(f"ranker: timm has no weights for {name}; train from random ones or give a file")
    backbone = _create(name, image_size, patch_size, pretrained=weights == TIMM_WEIGHTS, drawn=drawn)
    backbone.pos_embed = None
    if weights is not None and weights != TIMM_WEIGHTS:
        _load(backbone, name, weights)
    if depth is not None:
        if depth > len(backbone.blocks):
            raise UserError(f"ranker: {name} has {len(backbone.blocks)} blocks, fewer than the depth {depth}")
        backbone.blocks = backbone.blocks[:depth]
    return backbone


def _first_line(error: Exception) -> str:
    return first_line(error)[:300]


def _published(name: str) -> bool:
    """Whether timm names weights for a model; UserError for a name or a tag that it does not know."""
    # A name with a source ("hf-hub:...", "local-dir:...") would make loading a ranker reach for other places.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise UserError(f"ranker: timm has no model {name!r}; {_EXAMPLES}")
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"ranker: timm has no model {name!r}: {_first_line(error)}") from None
    return published is not None and bool(published.has_weights)


def _create(
    name: str, image_size: int, patch_size: int, *, pretrained: bool, drawn: bool = True
) -> VisionTransformer:
    options: dict[str, Any] = {} if drawn else {"weight_init": "skip"}
    try:
        model = timm.create_model(
            name, pretrained=pretrained, num_classes=0, img_size=image_size, patch_size=patch_size, **options
        )
    except Exception as error:
        # Other families refuse the arguments, each in its way; a hub out of reach does, too.
        if not pretrained:
            raise _no_plain_model(name, _first_line(error)) from None
        # Whether the model or its weights are at fault shows without the weights.
        _create(name, image_size, patch_size, pretrained=False)
        raise UserError(
            f"ranker: cannot get timm's weights of {name} ({_first_line(error)}); give the path of a weights file, "
            "or train from random ones"
        ) from None
    if type(model) is not VisionTransformer:
        raise _no_plain_model(name, f"timm builds a {type(model).__name__}")
    if model.cls_token is None:
        raise _no_plain_model(name, "it has no class token")
    if getattr(model, "attn_pool", None) is not None:
        raise _no_plain_model(name, "it pools by attention")
    if type(model.patch_embed) is not PatchEmbed:
        raise _no_plain_model(name, f"its patches are embedded by {type(model.patch_embed).__name__}")
    return model


def _no_plain_model(name: str, reason: str) -> UserError:
    return UserError(
        f"ranker: {name} is no plain vision transformer with a class token ({reason}); {_EXAMPLES}"
    )


def _load(backbone: VisionTransformer, name: str, path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"ranker: no weights at {path}: give a local .safetensors or .pth, or {TIMM_WEIGHTS}")
    try:
        found: dict[str, Tensor] = load_state_dict(path, weights_only=True)
        found.pop("pos_embed", None)
        loaded = backbone.load_state_dict(checkpoint_filter_fn(found, backbone), strict=False)
    except Exception as error:  # damaged files, refused pickles, other shapes: each fails in its way
        raise UserError(f"ranker: cannot load {path} into {name}: {_reason(error)}") from None
    # Heads, decoders and their like may be there; parts of another transformer may not.
    ours = {key.split(".")[0] for key in backbone.state_dict()} | {"reg_token", "norm_pre"}
    strange = [key for key in loaded.unexpected_keys if key.split(".")[0] in ours]
    if loaded.missing_keys or strange:
        what = f"it lacks {loaded.missing_keys[0]}" if loaded.missing_keys else f"{name} has no {strange[0]}"
        raise UserError(f"ranker: {path} holds weights of another architecture than {name}: {what}")


def _reason(error: Exception) -> str:
    """The line that says what is wrong: of shapes that differ, torch tells after a headline."""
    lines = str(error).strip().splitlines()
    mismatch = next((line.strip() for line in lines if "size mismatch" in line), None)
    return mismatch or _first_line(error)
