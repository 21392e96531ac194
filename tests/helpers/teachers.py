"""Small teachers with random weights, and their files in every format that is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from patchsieve.pipeline.teacher.architecture import TeacherConfig
from patchsieve.pipeline.teacher.model import MaskedAutoencoder

if TYPE_CHECKING:
    from transformers.models.vit_mae import ViTMAEForPreTraining

# ViT-Ti's width and MAE's decoder width: sizes whose numbers of heads are known.
KNOWN_SIZES = TeacherConfig(
    image_size=32,
    patch_size=8,
    width=192,
    depth=1,
    heads=3,
    decoder_width=512,
    decoder_depth=1,
    decoder_heads=16,
    mlp_ratio=0.5,
    output_space="pixels",
)
SMALL = TeacherConfig(
    image_size=48,
    patch_size=8,
    width=32,
    depth=3,
    heads=4,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=2,
    mlp_ratio=2.0,
    output_space="pixels",
)


def _stir(model: nn.Module) -> None:
    """Make every parameter matter: biases, norms and learned positions are random too."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("position_embeddings", "pos_embed")):
                parameter.normal_()
            else:
                spread = 0.2 if parameter.ndim == 1 else 1 / parameter.shape[-1] ** 0.5
                parameter.add_(torch.randn(parameter.shape) * spread)


def random_teacher(config: TeacherConfig, seed: int = 0) -> MaskedAutoencoder:
    """A teacher with random weights, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MaskedAutoencoder(config)
        _stir(model)
    return model.eval()


def random_vit_mae(*, seed: int = 0, **settings: Any) -> ViTMAEForPreTraining:
    """The ViTMAE of transformers, of the sizes of SMALL, with random weights."""
    # Two seconds that few tests need.
    from transformers.models.vit_mae import ViTMAEConfig, ViTMAEForPreTraining

    sizes: dict[str, Any] = {
        "image_size": 48,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 48,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViTMAEForPreTraining(ViTMAEConfig(**{**sizes, **settings}))
        _stir(model)
    return model.eval()


def published_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the hub's files, from those of transformers 5's modules."""
    inside = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, tensor in weights.items():
        old = name.replace("vit.layers.", "vit.encoder.layer.")
        for new, published in inside.items():
            old = old.replace(f".{new}.", f".{published}.")
        renamed[old] = tensor
    return renamed


def write_hub_folder(folder: Path, model: ViTMAEForPreTraining, *, names: str = "published") -> Path:
    """A Hugging Face folder: `names` `published`, `modules` (transformers 5) or `bin` (an older file)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if names != "modules":
        weights = published_names(weights)
    if names == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(weights, folder / "model.safetensors")
    return folder
