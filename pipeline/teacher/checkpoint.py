"""Teachers on disk: read any known format.

Our format is a `.safetensors` (single or half precision) and a JSON file of the same stem:
`{"name", "licence", "digest", "config": {fields of TeacherConfig}}`. A folder holds them as
`teacher.safetensors` and `teacher.json`. On a file system the JSON may stand beside a `.pth` as well, with
the fields that the file does not tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.architecture import OutputSpace, TeacherConfig
from patchsieve.pipeline.teacher.formats import complete_state, infer_config, our_names
from patchsieve.pipeline.teacher.sources import RawCheckpoint, read_checkpoint

_PUBLISHED_PIXELS = re.compile(r"mae_visualize_vit_|facebook(/|--)vit-mae-(base|large|huge)\b")
_PUBLISHED_MODEL = re.compile(r"mae_vit_(base|large|huge)_patch")
_PUBLISHED_NORMALISED = re.compile(r"mae_pretrain_vit_\w+_full")


@dataclasses.dataclass(frozen=True)
class TeacherFile:
    """A teacher as read: all that an actor needs to build it, and picklable.

    `digest`: `weights_digest`. `licence`: what the file or its card states, None where neither does.
    `state`: float32 tensors by our names, positions included.
    """

    config: TeacherConfig
    name: str
    digest: str
    licence: str | None
    state: dict[str, Tensor]


def read_teacher(spec: str, *, output_space: str | None = None) -> TeacherFile:
    """Read a teacher by name, path or URL.

    `spec`: `tiny`; `mae-base`, `mae-large`, `mae-huge`; another name on the Hugging Face hub; the path or fsspec
    URL of a `.pth` of the MAE release, a `.safetensors`, or a folder in Hugging Face's format or ours.

    The output space is `output_space` if given; else what our JSON says; else what is known of the published
    files: `mae_visualize_*` and the hub models made from them predict pixels (whatever their `config.json` says: that
    field was never set with care), `mae_pretrain_*_full` normalised patches; else `norm_pix_loss` of the training
    arguments or of a Hugging Face config; else unknown.

    Raises UserError, one line with the way out, for anything that is no teacher with a decoder; InfrastructureError
    where a URL cannot be read now.
    """
    raw = read_checkpoint(spec)
    weights = our_names(raw.weights, source=raw.name)
    settings = _settings(raw)
    settings["output_space"] = output_space or settings.get("output_space") or _output_space(raw)
    config = infer_config(weights, settings, source=raw.name, published=_is_published(raw))
    state = complete_state(weights, config, source=raw.name)
    digest = weights_digest(config, state)
    if raw.settings.get("digest", digest) != digest:
        raise UserError(f"{raw.name}: these are not the weights that the JSON file beside them describes")
    return TeacherFile(config, raw.name, digest, raw.licence, state)


def _settings(raw: RawCheckpoint) -> dict[str, Any]:
    """Fields of TeacherConfig that stand beside the weights."""
    hub = raw.hub_config
    if not hub:
        config = raw.settings.get("config", {})
        if not isinstance(config, dict):
            raise UserError(f'{raw.name}: "config" in its JSON file is not an object')
        return dict(config)
    kind, activation = hub["model_type"], hub.get("hidden_act", "gelu")
    if kind != "vit_mae" or activation != "gelu":
        raise UserError(
            f"{raw.name} is a {kind} model with {activation} activation; a teacher is a vit_mae with gelu"
        )
    fields = {
        "heads": "num_attention_heads",
        "decoder_heads": "decoder_num_attention_heads",
        "norm_eps": "layer_norm_eps",
    }
    return {ours: hub[theirs] for ours, theirs in fields.items() if theirs in hub}


def _is_published(raw: RawCheckpoint) -> bool:
    """Whether name or training arguments say that the teacher is of MAE's published sizes."""
    named = _PUBLISHED_PIXELS.search(raw.origin) or _PUBLISHED_NORMALISED.search(raw.origin)
    return bool(named or _PUBLISHED_MODEL.match(str(raw.arguments.get("model", ""))))


def _output_space(raw: RawCheckpoint) -> OutputSpace:
    if _PUBLISHED_PIXELS.search(raw.origin):
        return "pixels"
    if _PUBLISHED_NORMALISED.search(raw.origin):
        return "normalised"
    normalised = raw.arguments.get("norm_pix_loss", raw.hub_config.get("norm_pix_loss"))
    return "unknown" if normalised is None else "normalised" if normalised else "pixels"


def weights_digest(config: TeacherConfig, state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of what a teacher computes with: the same for the same weights in any format.

    Over the numbers of heads and, where it is not 1e-6, the epsilon of norms, which no shape shows, then over each
    parameter in the order of names: name, shape and values as little-endian float32.
    """
    shown_by_no_shape = f"heads {config.heads} {config.decoder_heads}\n"
    if config.norm_eps != TeacherConfig.norm_eps:
        shown_by_no_shape += f"norm_eps {config.norm_eps!r}\n"
    digest = hashlib.sha256(shown_by_no_shape.encode())
    for name in sorted(state):
        values = state[name].detach().cpu().float().contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
