"""The name schemes of MAE checkpoints, and what their shapes tell; no files here.

Three schemes hold the same weights: ours, which is also that of the FAIR release's `.pth` files, and the two of
Hugging Face's ViTMAE (as published on the hub, and as transformers 5 names its modules).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.architecture import TeacherConfig, parameter_shapes, sincos_positions

# Heads cannot be read off shapes. These are the published sizes: ViT-Ti, -S, -B, -L and -H of the ViT, DeiT and
# MAE papers, and MAE's decoder.
_HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS_BY_WIDTH = {512: 16}
_WITH_DECODER = {
    768: "mae-base or mae_visualize_vit_base.pth",
    1024: "mae-large or mae_visualize_vit_large.pth",
    1280: "mae-huge or mae_visualize_vit_huge.pth",
}

_WRAPPERS = ("module.", "_orig_mod.")
_ATTENTION = {"query": "q", "key": "k", "value": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
_HUGGING_FACE: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:vit\.)?layernorm\.", "norm."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.", ""),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"\.attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.",
        lambda found: f".attn.{_ATTENTION[found[1]]}.",
    ),
    (r"\.(?:intermediate\.dense|mlp\.fc1)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.fc2)\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]


def our_names(weights: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The weights of any known scheme under our names, float32, contiguous, q, k and v fused.

    Raises UserError for what is no MAE, and for an encoder without its decoder. `source` names it in messages.
    """
    weights = _unwrapped(weights)
    if any(name.endswith("embeddings.cls_token") for name in weights):
        renamed = _fuse({_from_hugging_face(name): tensor for name, tensor in weights.items()})
    elif "cls_token" in weights:
        renamed = dict(weights)
    else:
        raise UserError(f"{source} holds no masked autoencoder: it has no class token ({_some(weights)})")
    if not any(name.startswith("decoder") for name in renamed):
        width = renamed["cls_token"].shape[-1]
        raise UserError(
            f"{source} holds an encoder without its decoder, which cannot reconstruct; use "
            f"{_WITH_DECODER.get(width, 'a checkpoint of the whole pretraining model, such as mae-base')}"
        )
    return {name: tensor.detach().float().contiguous() for name, tensor in renamed.items()}


def _unwrapped(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without what torch's wrappers (DistributedDataParallel, compile) put before every name."""
    for prefix in _WRAPPERS:
        if weights and all(name.startswith(prefix) for name in weights):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    return weights


def _from_hugging_face(name: str) -> str:
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def _fuse(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate query, key and value projections become one, stacked in this order."""
    fused = {name: tensor for name, tensor in weights.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name, query in weights.items():
        if ".attn.q." in name:
            others = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "kv"]
            if all(other in weights for other in others):
                fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(
                    [query, *(weights[o] for o in others)]
                )
    return fused


def infer_config(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], *, source: str, published: bool
) -> TeacherConfig:
    """The architecture, from shapes and, before them, from `settings` (fields of TeacherConfig that are known).

    `published`: it is of the published sizes, whose numbers of heads are known. Raises UserError where neither tells,
    naming what is missing.
    """
    _check_settings(settings, source)
    try:
        width, _, patch_size, _ = weights["patch_embed.proj.weight"].shape
        decoder_width = weights["decoder_embed.weight"].shape[0]
        hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as missing:
        raise UserError(f"{source} lacks the parameter {missing.args[0]}") from None
    known: dict[str, Any] = {
        "patch_size": patch_size,
        "width": width,
        "depth": _blocks(weights, "blocks"),
        "heads": _HEADS_BY_WIDTH.get(width) if published else None,
        "decoder_width": decoder_width,
        "decoder_depth": _blocks(weights, "decoder_blocks"),
        "decoder_heads": _DECODER_HEADS_BY_WIDTH.get(decoder_width) if published else None,
        "mlp_ratio": hidden / width,
    }
    if "pos_embed" in weights:
        known["image_size"] = _grid(weights["pos_embed"], source) * patch_size
    # Before anything is made of it: a depth of a billion is soon written.
    for name in ("patch_size", "width", "depth", "decoder_width", "decoder_depth", "mlp_ratio"):
        if name in settings and settings[name] != known[name]:
            raise UserError(
                f"{source}: {name} is {settings[name]} in its settings, {known[name]} in its weights"
            )
    known.update(settings)
    if unknown := [name for name in ("image_size", "heads", "decoder_heads") if known.get(name) is None]:
        usual = {
            "heads": _HEADS_BY_WIDTH.get(width),
            "decoder_heads": _DECODER_HEADS_BY_WIDTH.get(decoder_width),
        }
        example = ", ".join(f'"{name}": {usual.get(name) or "..."}' for name in unknown)
        told = [f"{name} {usual[name]}" for name in unknown if usual.get(name)]
        raise UserError(
            f"{source} does not tell its {' and '.join(unknown)}: put a JSON file of the same name beside it that "
            f'holds {{"config": {{{example}}}}}'
            + (f" ({' and '.join(told)} are usual for its widths; others give other scores)" if told else "")
        )
    return TeacherConfig(**known)


def _check_settings(settings: Mapping[str, Any], source: str) -> None:
    """Settings come from a JSON file that somebody may have written by hand."""
    fields = {field.name: field.default for field in dataclasses.fields(TeacherConfig)}
    for name, value in settings.items():
        if name not in fields:
            raise UserError(f"{source}: no teacher has the setting {name!r}; it may be {', '.join(fields)}")
        kind = type(fields[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{source}: {name} is {value!r}, which is no {kind.__name__}")


def _blocks(weights: Mapping[str, Tensor], stack: str) -> int:
    numbers = {name.split(".")[1] for name in weights if name.startswith(f"{stack}.")}
    return len(numbers)


def _grid(positions: Tensor, source: str) -> int:
    grid = math.isqrt(positions.shape[1] - 1) if positions.ndim == 3 and positions.shape[1] > 1 else 0
    if not grid or grid**2 != positions.shape[1] - 1:
        raise UserError(
            f"{source}: {list(positions.shape)} position embeddings are not a class token and a square grid"
        )
    return grid


def complete_state(weights: Mapping[str, Tensor], config: TeacherConfig, *, source: str) -> dict[str, Tensor]:
    """Exactly the parameters of this architecture, positions computed where they are not stored.

    Raises UserError where one is missing, too many, of another shape or not finite.
    """
    state = {
        "pos_embed": sincos_positions(config.width, config.grid)[None],
        "decoder_pos_embed": sincos_positions(config.decoder_width, config.grid)[None],
        **weights,
    }
    expected = parameter_shapes(config)
    if missing := expected.keys() - state.keys():
        raise UserError(f"{source} lacks {len(missing)} parameters of its architecture: {_some(missing)}")
    if surplus := state.keys() - expected.keys():
        raise UserError(f"{source} has {len(surplus)} parameters that no MAE has: {_some(surplus)}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserError(
                f"{source}: {name} has the shape {list(state[name].shape)}, the rest of the file calls for "
                f"{list(shape)}"
            )
        if not torch.isfinite(state[name]).all():
            raise UserError(f"{source}: {name} holds values that are not finite; the file is damaged")
    return state


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
