"""Teachers on disk: read any known format, build the model, save our own.

Our format is a `.safetensors` (single or half precision) and a JSON file of the same stem:
`{"name", "licence", "digest", "config": {fields of TeacherConfig}}`. A folder holds them as
`teacher.safetensors` and `teacher.json`. On a file system the JSON may stand beside a `.pth` as well, with
the fields that the file does not tell.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from patchrank.pipeline.errors import UserError
from patchrank.pipeline.storage import commit_bytes, join
from patchrank.pipeline.teacher.formats import complete_state, infer_config, our_names
from patchrank.pipeline.teacher.model import MaskedAutoencoder, OutputSpace, TeacherConfig, sincos_positions
from patchrank.pipeline.teacher.sources import Source, open_source

_PUBLISHED_PIXELS = re.compile(r"mae_visualize_vit_|facebook(/|--)vit-mae-(base|large|huge)\b")
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
    source = open_source(spec)
    weights = our_names(source.weights, source=source.name)
    settings = _settings(source)
    settings["output_space"] = output_space or settings.get("output_space") or _output_space(source)
    config = infer_config(weights, settings, source=source.name)
    state = complete_state(weights, config, source=source.name)
    digest = weights_digest(config, state)
    if source.settings.get("digest", digest) != digest:
        raise UserError(f"{source.name}: these are not the weights that the JSON file beside them describes")
    return TeacherFile(config, source.name, digest, source.licence, state)


def _settings(source: Source) -> dict[str, Any]:
    """Fields of TeacherConfig that stand beside the weights."""
    hub = source.hub_config
    if not hub:
        config = source.settings.get("config", {})
        if not isinstance(config, dict):
            raise UserError(f'{source.name}: "config" in its JSON file is not an object')
        return dict(config)
    kind, activation = hub["model_type"], hub.get("hidden_act", "gelu")
    if kind != "vit_mae" or activation != "gelu":
        raise UserError(
            f"{source.name} is a {kind} model with {activation} activation; a teacher is a vit_mae with gelu"
        )
    fields = {
        "heads": "num_attention_heads",
        "decoder_heads": "decoder_num_attention_heads",
        "norm_eps": "layer_norm_eps",
    }
    return {ours: hub[theirs] for ours, theirs in fields.items() if theirs in hub}


def _output_space(source: Source) -> OutputSpace:
    if _PUBLISHED_PIXELS.search(source.origin):
        return "pixels"
    if _PUBLISHED_NORMALISED.search(source.origin):
        return "normalised"
    normalised = source.arguments.get("norm_pix_loss", source.hub_config.get("norm_pix_loss"))
    return "unknown" if normalised is None else "normalised" if normalised else "pixels"


def weights_digest(config: TeacherConfig, state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of what a teacher computes with: the same for the same weights in any format.

    Over the numbers of heads, which no shape shows, then over each parameter in the order of names: name, shape and
    values as little-endian float32.
    """
    digest = hashlib.sha256(f"heads {config.heads} {config.decoder_heads}\n".encode())
    for name in sorted(state):
        values = state[name].detach().cpu().float().contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def build_teacher(file: TeacherFile, *, device: str = "cpu") -> MaskedAutoencoder:
    """The model, frozen and in evaluation mode. On the CPU it shares the memory of `file.state`."""
    with torch.device("meta"):
        model = MaskedAutoencoder(file.config)
    model.load_state_dict(file.state, assign=True)
    return model.to(device).eval().requires_grad_(False)


def save_teacher(
    model: MaskedAutoencoder,
    target: str,
    *,
    name: str,
    half: bool = False,
    licence: str | None = None,
    run_id: str = "save",
) -> TeacherFile:
    """Save a model in our format and return what `read_teacher` will find there.

    `target`: a `.safetensors` path or URL, or a folder. `half`: weights as float16, which halves the file. Positions
    that equal the computed ones are not stored, others as float32. Raises UserError for weights that are not finite
    in that precision, and where the target cannot be written.
    """
    weights_url = target if target.endswith(".safetensors") else join(target, "teacher.safetensors")
    config = model.config
    computed = {
        "pos_embed": sincos_positions(config.width, config.grid)[None],
        "decoder_pos_embed": sincos_positions(config.decoder_width, config.grid)[None],
    }
    stored: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        values = tensor.detach().cpu().float().contiguous()
        if key not in computed:
            stored[key] = values.half() if half else values
        elif not torch.equal(values, computed[key]):
            stored[key] = values
    weights = {key: tensor.float() for key, tensor in stored.items()}
    state = complete_state(weights, config, source=name)
    file = TeacherFile(config, name, weights_digest(config, state), licence, state)
    about = {"name": name, "licence": licence, "digest": file.digest, "config": dataclasses.asdict(config)}
    # Weights first: old settings beside new weights are told by their digest, and refused.
    commit_bytes(safetensors.torch.save(stored), weights_url, run_id=run_id)
    settings_url = os.path.splitext(weights_url)[0] + ".json"
    commit_bytes((json.dumps(about, indent=2) + "\n").encode(), settings_url, run_id=run_id)
    return file
