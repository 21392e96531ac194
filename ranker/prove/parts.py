"""What a measurement is made of: ranker, teacher and backbone as they were read, and what stands on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.identity import digest_of
from patchsieve.pipeline.pruned.codec import ImageCodec
from patchsieve.pipeline.row_config import DECODER
from patchsieve.pipeline.shards.specs import Shard
from patchsieve.pipeline.teacher.build import build_teacher
from patchsieve.pipeline.teacher.checkpoint import TeacherFile, read_teacher
from patchsieve.ranker.baselines.baselines import BaselineSources
from patchsieve.ranker.baselines.fits import FITS
from patchsieve.ranker.model.checkpoint import LoadedRanker
from patchsieve.ranker.prove.arms import CONTROLS, FITTED, selector_names
from patchsieve.ranker.prove.config import ProveConfig
from patchsieve.ranker.prove.encoders import Backbone, TeacherEncoder, TimmEncoder, load_backbone
from patchsieve.ranker.prove.learners import FinetuneLearner, Learner, ProbeLearner
from patchsieve.ranker.prove.photos import LabelledPhotos
from patchsieve.ranker.prove.tokens import check_plain
from patchsieve.ranker.prove.views import Canvas
from patchsieve.ranker.prove.workbench import Workbench
from patchsieve.ranker.select.patch_scorer import PatchScorer, PatchSource, open_patch_source

PROVE_VERSION = 2
"""Raised only when the same settings give other figures. Part of the identity."""

_IDENTITY = ("label", "protocol", "selector", "validation", "seed", "image_field", "quality", "background")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What was read, picklable: a machine that has these needs no other file. `lacking`: controls without fits."""

    config: ProveConfig
    source: PatchSource
    teacher: TeacherFile
    backbone: Backbone | None
    controls: Sequence[str]
    lacking: Sequence[str]

    @property
    def ranker(self) -> LoadedRanker:
        """Whose selections are measured."""
        assert self.source.ranker is not None, "baselines are refused"
        return self.source.ranker

    @property
    def fits(self) -> dict[str, Any]:
        """Of the baselines that are stored with the ranker."""
        return self.ranker.extra.get(FITS) or {}

    @property
    def encoder(self) -> str:
        """Name of the model that reads what arms leave."""
        return self.teacher.name if self.backbone is None else self.backbone.name

    def identity(self, train: LabelledPhotos, test: Sequence[Shard]) -> dict[str, Any]:
        """Everything that can change a figure, by name."""
        config, backbone = self.config, self.backbone
        return {
            "job": "prove",
            "prove_version": PROVE_VERSION,
            **{name: getattr(config, name) for name in _IDENTITY},
            **({"unsorted": True} if config.unsorted else {}),
            "merge": config.merged,
            "keep": list(config.ratios),
            "limit_train": config.limit_train,
            "limit_test": config.limit_test,
            "decoder": DECODER,
            "ranker": self.ranker.digest,
            "fits": digest_of(self.fits),
            "teacher": self.teacher.digest,
            "encoder": self.teacher.digest if backbone is None else f"{backbone.name} {backbone.digest}",
            **({"recipe": dataclasses.asdict(config.recipe)} if config.protocol == "finetune" else {}),
            "train": digest_of(list(train.contents)),
            "test": digest_of([[shard.name, shard.size] for shard in test]),
        }


def read_inputs(config: ProveConfig) -> Inputs:
    """Read ranker, teacher and backbone; UserError for what does not go together."""
    names = selector_names(config.background or 0)
    if config.selector != "auto" and config.selector not in names:
        raise UserError(f"--selector is {config.selector!r}, must be auto or one of {', '.join(names)}")
    if config.ranker.startswith("baseline:"):
        raise UserError(f"--ranker is {config.ranker}: baselines are controls already, name a ranker")
    strange = set(config.named_controls or ()) - set(CONTROLS)
    if strange:
        raise UserError(f"--controls: there is no {min(strange)!r}, only all or {', '.join(CONTROLS)}")
    source = open_patch_source(config.ranker, fits=None, teacher=None, seed=config.seed)
    assert source.ranker is not None, "baselines are refused above"
    fits = source.ranker.extra.get(FITS) or {}
    wanted = CONTROLS if config.named_controls is None else config.named_controls
    lacking = [name for name in FITTED if name in wanted and name not in fits]
    teacher = read_teacher(config.teacher)
    ours, theirs = source.ranker.config, teacher.config
    if (ours.grid, ours.patch_size) != (theirs.grid, theirs.patch_size):
        raise UserError(
            f"{source.name} ranks {ours.grid} x {ours.grid} patches of {ours.patch_size} px, --teacher "
            f"{teacher.name} sees {theirs.grid} x {theirs.grid} of {theirs.patch_size} px: name another"
        )
    _check_background(config, ours.grid, ours.patch_size)
    backbone = None if config.backbone is None else load_backbone(config.backbone)
    if backbone is not None and config.protocol == "finetune":
        check_plain(backbone.model, backbone.name, grid=ours.grid, patch_size=ours.patch_size)
    return Inputs(
        config=config,
        source=dataclasses.replace(source, precision="fp32"),
        teacher=teacher,
        backbone=backbone,
        controls=[name for name in wanted if name not in lacking],
        lacking=lacking,
    )


def _check_background(config: ProveConfig, grid: int, patch_size: int) -> None:
    """Refuse a thumbnail that patches do not fill, or that leaves none of what may be kept."""
    side = config.background or 0
    least = int(config.ratios[0] * grid**2)
    if side and (side % patch_size or (side // patch_size) ** 2 >= least):
        raise UserError(
            f"--background {side} must be a multiple of {patch_size} px, and take less than the {least} of "
            f"{grid**2} patches that --keep {config.ratios[0]:g} leaves"
        )


def make_learner(inputs: Inputs, device: torch.device) -> Learner[Any]:
    """Who learns from the images, on a device."""
    config, backbone, teacher = inputs.config, inputs.backbone, inputs.teacher
    if config.protocol == "probe":
        if backbone is not None:
            return ProbeLearner(TimmEncoder(backbone.model, device))
        model = build_teacher(teacher, device=str(device))
        return ProbeLearner(TeacherEncoder(model, device))
    grid, patch_size = teacher.config.grid, teacher.config.patch_size
    vit: Any = build_teacher(teacher) if backbone is None else backbone.model
    return FinetuneLearner(vit, config.recipe, grid=grid, patch_size=patch_size, device=device)


def make_bench(inputs: Inputs, device: torch.device) -> Workbench:
    """What makes views of images, on a device."""
    config, ranker = inputs.config, inputs.ranker.config
    return Workbench(
        Canvas(ranker.grid, ranker.patch_size, ImageCodec("jpeg", config.quality)),
        PatchScorer(inputs.source, device=device, batch_size=32),
        BaselineSources(
            grid=ranker.grid,
            patch_size=ranker.patch_size,
            seed=config.seed,
            fits=inputs.fits,
            teacher=build_teacher(inputs.teacher, device=str(device)),
        ),
    )
