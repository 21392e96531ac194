"""The model card of a ranker: what it is, how well it agrees, how it was trained, how it is loaded and published."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from patchsieve.pipeline.shown import one_line
from patchsieve.pipeline.units import counted

CARD_FILE = "README.md"

_HEAD = """---
library_name: timm
tags:
- patchsieve
- patch-ranking
---
"""


def model_card(about: Mapping[str, Any]) -> str:
    """Markdown, with the block of facts that the hub reads, of what a ranker's `config.json` holds."""
    config, teacher, extra = about["config"], about["teacher"], about["extra"]
    size, patch, positions = config["image_size"], config["patch_size"], teacher["grid"] ** 2
    name = one_line(str(teacher["name"]))
    licence = one_line(str(teacher.get("licence") or "not known"))
    out = "[:, model.num_prefix_tokens :, 0]" if config["head"] == "token" else ""
    return f"""{_HEAD}
# A ranker of patches

It scores the {positions} patches ({patch} x {patch} pixels) of an image of {size} x {size} pixels by how much the
masked autoencoder `{name}` would miss each, in one pass. Higher is more; scores compare within an image only. Made by
patchsieve; the method is that of [Luo et al., CVPR 2024](https://arxiv.org/abs/2404.00680).

{_measured(extra)}

## Use

    import patchsieve
    ranker = patchsieve.load_ranker("FOLDER")               # a local folder, or user/name on the hub
    patchsieve.rank_images([image], ranker)                 # [1, {positions}]

    patchsieve prune 'photos/*.tar' --ranker FOLDER --out pruned --keep 0.5

timm loads it as well, as `{about["architecture"]}` with this head; images are `[N, 3, {size}, {size}]`,
ImageNet-normalised:

    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()    # "hf-hub:user/name"
    {f"scores = model(images){out}":<72} # [N, {positions}]

What timm does not do is rank some patches of an image without the others: patchsieve's `forward_visible` does.

## Training

On scores by `{name}` of {counted(len(about["tables"]), "shard")}. The licence of `{name}`: {licence}. State the one
that holds for this ranker here, and in the block above.

{_indented({"ranker": config, "scores": extra.get("rows", {}), "training": extra.get("training", {})})}

## Publish

    hf upload user/name FOLDER --include README.md --include config.json --include '*.safetensors'
"""


def _measured(extra: Mapping[str, Any]) -> str:
    if extra.get("agreement") is None or not {"held_out", "validation", "step", "steps"} <= extra.keys():
        return (
            "Its agreement with the teacher was not measured as it was trained: `patchsieve evaluate` does."
        )
    return (
        f"Agreement with the teacher (Spearman within each image, mean over {extra['held_out']} held-out images, "
        f"{extra['validation']}): {extra['agreement']:.3f}, at step {extra['step']} of {extra['steps']}.\n"
        "`patchsieve evaluate` measures it beside what the teacher's own reliability allows and eleven baselines."
    )


def _indented(settings: Mapping[str, Any]) -> str:
    return textwrap.indent(json.dumps(settings, indent=1, sort_keys=True), "    ")
