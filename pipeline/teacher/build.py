"""Teachers as models: built from what was read, and saved in our format (see `checkpoint`)."""

from __future__ import annotations

import dataclasses
import json
import os

import safetensors.torch
import torch
from torch import Tensor

from patchsieve.pipeline.storage import commit_bytes, join
from patchsieve.pipeline.teacher.architecture import sincos_positions
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, weights_digest
from patchsieve.pipeline.teacher.formats import complete_state
from patchsieve.pipeline.teacher.model import MaskedAutoencoder


def build_teacher(file: TeacherFile, *, device: str = "cpu") -> MaskedAutoencoder:
    """The model, frozen and in evaluation mode. On the CPU it shares the memory of `file.state`."""
    with torch.device("meta"):
        model = MaskedAutoencoder(file.config, drawn=False)
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
