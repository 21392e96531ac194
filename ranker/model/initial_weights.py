"""What a ranker starts from: random weights, those of timm or of a file, or the encoder of its teacher.

A teacher's encoder and a ranker are the same transformer: both read ImageNet-normalised patches, add fixed sine-cosine
positions and stand a class token before them. Filled with all its blocks, a ranker computes the teacher's latents.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.teacher.architecture import sincos_positions
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.ranker.model.ranker import Ranker, RankerConfig

RANDOM_WEIGHTS = "random"
TEACHER_WEIGHTS = "teacher"

_SHARED = ("cls_token", "patch_embed.", "blocks.", "norm.")
_POSITION_TOLERANCE = 1e-3
"""Of a teacher's positions against computed ones, which reach from -1 to 1; stored as float16 they are 5e-4 off."""


def initial_ranker(
    config: RankerConfig, weights: str = RANDOM_WEIGHTS, *, teacher: TeacherFile | None = None, seed: int = 0
) -> Ranker:
    """A ranker ready to be trained; `seed` decides what is random in it, torch's own generator is left alone.

    `weights`: `random`; `timm`; the path of a local weights file (see `build_backbone`); or `teacher`, the patch
    embedding, class token, blocks and norm of the encoder of `teacher`: its first `config.depth` blocks.

    Raises UserError, one line, for weights that do not fit the model; both sizes are named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        own = weights in (RANDOM_WEIGHTS, TEACHER_WEIGHTS)
        ranker = Ranker(config, weights=None if own else weights)
    if weights == TEACHER_WEIGHTS:
        if teacher is None:
            raise UserError("weights of the teacher need a teacher: name it with --teacher")
        _fill(ranker, teacher)
    return ranker


def read_tables_teacher(spec: str | None, *, name: str, digest: str) -> TeacherFile:
    """The teacher that scored some tables, `name` and `digest` being those of their metadata.

    `spec`: a teacher of `patchsieve score`; None looks for `name`. Raises UserError where there is none, or another.
    """
    try:
        file = read_teacher(spec or name)
    except UserError as error:
        if spec is not None:
            raise
        raise UserError(f"--weights {TEACHER_WEIGHTS}: add --teacher, since {error}") from None
    if file.digest != digest:
        raise UserError(
            f"--teacher {spec or name} has digest {file.digest[:16]}, the teacher {name} that scored the tables "
            f"{digest[:16]}: give that one"
        )
    return file


def _fill(ranker: Ranker, teacher: TeacherFile) -> None:
    """Copy the encoder into the ranker's transformer."""
    backbone, config = ranker.backbone, ranker.config
    _check_sizes(backbone, config, teacher)
    state = dict(teacher.state)
    positions = state.pop("pos_embed")[0]
    computed = sincos_positions(teacher.config.width, teacher.config.grid)
    if not torch.allclose(positions[1:], computed[1:], rtol=0, atol=_POSITION_TOLERANCE):
        raise UserError(
            f"teacher {teacher.name} has positions of its own; a ranker adds fixed ones and cannot start from it"
        )
    # MAE adds a position to the class token too, all zeros in every known file.
    state["cls_token"] = state["cls_token"] + positions[0]
    filled = {name: _taken(state, name, backbone, teacher) for name in backbone.state_dict()}
    backbone.load_state_dict(filled)


def _check_sizes(backbone: VisionTransformer, config: RankerConfig, teacher: TeacherFile) -> None:
    theirs = teacher.config
    heads: Any = backbone.blocks[0].get_submodule("attn").num_heads
    if (backbone.embed_dim, heads) != (theirs.width, theirs.heads):
        raise UserError(
            f"--model {config.model} is {backbone.embed_dim} wide with {heads} heads, the encoder of teacher "
            f"{teacher.name} {theirs.width} wide with {theirs.heads}: choose a model of that width"
        )
    if (config.grid, config.patch_size) != (theirs.grid, theirs.patch_size):
        raise UserError(
            f"the ranker sees {config.grid} x {config.grid} patches of {config.patch_size} px, teacher {teacher.name} "
            f"{theirs.grid} x {theirs.grid} of {theirs.patch_size} px"
        )
    if len(backbone.blocks) > theirs.depth:
        raise UserError(
            f"--model {config.model} has {len(backbone.blocks)} blocks, the encoder of teacher {teacher.name} "
            f"{theirs.depth}: add --depth {theirs.depth} or less"
        )


def _taken(state: dict[str, Tensor], name: str, backbone: VisionTransformer, teacher: TeacherFile) -> Tensor:
    """The teacher's values for one parameter of the transformer."""
    shape = backbone.state_dict()[name].shape
    found = state.get(name) if name.startswith(_SHARED) else None
    if found is None or found.shape != shape:
        had = "nothing" if found is None else str(list(found.shape))
        raise UserError(
            f"the ranker's transformer is none that teacher {teacher.name} can fill: its {name} is {list(shape)}, "
            f"the teacher has {had}"
        )
    return found
