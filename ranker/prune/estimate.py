"""What a prune run would give, measured on a sample of its images; nothing of the output is written.

Shape suffixes: N images, L patches of an image.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from patchsieve.pipeline import storage
from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pictures.sheet import picture_file
from patchsieve.pipeline.scoring.api import Teacher, load_teacher
from patchsieve.pipeline.shards.reader import Sample, ShardReader
from patchsieve.pipeline.shards.tar_stream import BLOCK
from patchsieve.pipeline.units import byte_size, counted
from patchsieve.ranker.evaluate.reconstruction import mask_errors
from patchsieve.ranker.prune.plan import read_plan, stored_precision
from patchsieve.ranker.prune.ranking import RankedImage, keep_masks, rank
from patchsieve.ranker.prune.request import PruneRequest, asked_ratio
from patchsieve.ranker.prune.sample import Left, encode_image, prepare_sample
from patchsieve.ranker.prune.sheet import draw_choices
from patchsieve.ranker.select.budget import find_budget
from patchsieve.ranker.select.image_choice import ImagePlan, ShardChoice, plan_images
from patchsieve.ranker.select.patch_scorer import PatchScorer, choose_source_precision
from patchsieve.ranker.select.selection import Mask, kept_mass, log_masses
from patchsieve.ranker.select.selector import Selector

SAMPLED_SHARDS, SAMPLED_IMAGES = 4, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class WayEstimate:
    """One way to prune, as the sample shows it; `bytes_after`: of all shards, predicted.

    `kept`: share of the patches; `mass`: mean share of the softmax that stays, None without a temperature;
    `of_reencoded`: bytes of the images over those of whole crops in the same codec, None for an index. `errors`: the
    teacher's mean square error in rebuilding the images from what stays, in pixels and normalised.
    """

    label: str
    kept: float
    mass: float | None
    bytes_after: int
    of_reencoded: float | None
    errors: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneEstimate:
    """Predictions for a run. `lost`: share of the pixels outside the crop, mean over images.

    Of the sample, `images` are ranked, `unscored` of them because the tables have no score of theirs; `left` ones are
    not pruned and `dropped` ones go for their score. `plan`: which images of the whole dataset stay, None for all.
    """

    images: int
    unscored: int
    left: int
    dropped: int
    plan: ImagePlan | None
    lost: float
    shard_bytes: int
    choices: Sequence[WayEstimate]

    def lines(self, request: PruneRequest) -> list[str]:
        """What the dry run prints."""
        source, spec = request.source, request.spec
        positions = source.grid**2
        lines = [
            f"shards    {len(request.shards):,}, {byte_size(self.shard_bytes)}",
            f"ranker    {source.name}, {source.grid} x {source.grid} patches of {source.patch_size} px",
            f"sample    {counted(self.images, 'image')} ranked, {self.left} left as they are",
            f"crop      {spec.crop} to {spec.size} px, {self.lost:.1%} of the pixels are lost",
        ]
        if self.plan is not None:
            lines.append(
                f"images    {self.plan.kept:,} of {self.plan.scored:,} with a score stay, those from "
                f"{self.plan.threshold:.6g} on (experimental); in the sample {self.dropped} go, {self.unscored} "
                "without a score stay"
            )
        for choice in self.choices:
            parts = [f"{choice.kept * positions:.1f} of {positions} patches"]
            if spec.coarse:
                parts.append(
                    f"with the thumbnail as many tokens as {choice.kept * positions + spec.coarse:.1f}"
                )
            if choice.mass is not None:
                parts.append(f"softmax mass {choice.mass:.3f}")
            if choice.of_reencoded is not None:
                parts.append(f"shards about {byte_size(choice.bytes_after)}")
                parts.append(f"images {choice.of_reencoded:.1%} of whole crops in the same codec")
            if choice.errors is not None:
                parts.append(f"error {choice.errors[0]:.4f} in pixels, {choice.errors[1]:.3f} normalised")
            lines.append(f"{choice.label:10}{', '.join(parts)}")
        if any(choice.errors is not None for choice in self.choices):
            lines.append(
                f"error     mean square, of {request.config.teacher} rebuilding the images from what stays"
            )
        return lines


def estimate_pruning(request: PruneRequest) -> PruneEstimate:
    """Rank, select and encode a sample on this machine; Ray is not started. Writes the contact sheet, if asked for.

    Raises UserError where no sampled image can be pruned, and for a teacher of another grid.
    """
    config = request.config
    if not request.shards:
        raise UserError(f"--part {config.part} has no shard: there is nothing to measure")
    teacher = _teacher(request)
    request = stored_precision(request, None)
    if request.source.needs_precision:
        request = request.with_precision(choose_source_precision(request.source, this_device()))
    request, plan = _planned(request)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        items = list(pool.map(lambda pair: prepare_sample(pair[0], request.spec, pair[1]), _sample(request)))
        scorer = PatchScorer(request.source, device=this_device(), batch_size=config.batch_size)
        step = scorer.batch_size
        ranked = [item for at in range(0, len(items), step) for item in rank(items[at : at + step], scorer)]
        images = [item for item in ranked if not isinstance(item, Left)]
        left = [item for item in ranked if isinstance(item, Left)]
        dropped = sum(item.dropped for item in left)
        if not images:
            why = f"{dropped} are dropped for their score" if dropped else "see --image-field"
            raise UserError(f"none of the {len(items)} samples read can be pruned; {why}")
        scores_NL = np.stack([scores_L for _, scores_L in images])
        masks = {label: keep_masks(at, images) for label, at in _selectors(request, scores_NL).items()}
        total = sum(shard.size or 0 for shard in request.shards)
        copied = _tar_bytes(member for item in left if not item.dropped for member in item.members)
        read = _tar_bytes(item for image, _ in images for item in image.sample.fields.items())
        read += _tar_bytes(member for item in left for member in item.members)
        whole = _whole_bytes(request, images, pool)
        choices = [
            _choice(request, images, scores_NL, label, keep_NL, pool, whole=whole, teacher=teacher)
            for label, keep_NL in masks.items()
        ]
        stays = 0 if config.drop_bad or request.spec.codec is None else copied
        choices = [
            dataclasses.replace(choice, bytes_after=round((choice.bytes_after + stays) * total / read))
            for choice in choices
        ]
    if config.sheet is not None:
        sheet = picture_file(draw_choices(request, images, masks))
        storage.commit_bytes(sheet, storage.absolute_url(config.sheet), run_id="dry-run")
    shown = [image.box.height * image.box.width / np.prod(image.image_size) for image, _ in images]
    return PruneEstimate(
        images=len(images),
        unscored=0 if plan is None else sum(image.image_score is None for image, _ in images),
        left=len(left) - dropped,
        dropped=dropped,
        plan=plan,
        lost=1 - float(np.mean(shown)),
        shard_bytes=total,
        choices=choices,
    )


def _teacher(request: PruneRequest) -> Teacher | None:
    """The teacher whose reconstructions are measured, if one was given."""
    name, source = request.config.teacher, request.source
    if name is None:
        return None
    teacher = load_teacher(name, precision="fp32")
    config = teacher.model.config
    if (config.grid, config.patch_size) != (source.grid, source.patch_size):
        raise UserError(
            f"--teacher {name} sees {config.grid} x {config.grid} patches of {config.patch_size} px, {source.name} "
            f"{source.grid} x {source.grid} of {source.patch_size}: their patches are not the same"
        )
    if config.output_space == "unknown":
        raise UserError(f"--teacher {name}: its output space is not known, so its error cannot be told")
    return teacher


def _planned(request: PruneRequest) -> tuple[PruneRequest, ImagePlan | None]:
    """The request as it would run, and which images stay; what is frozen in OUT counts, but not in a sweep."""
    if request.needs_plan and not request.config.sweep_ratios:
        request = read_plan(request) or request
    if request.choice is None:
        return request, None
    plan = plan_images(request.choice, request.shards)
    return request.with_thresholds(images=plan.threshold), plan


def _sample(request: PruneRequest) -> Iterator[tuple[Sample, ShardChoice | None]]:
    """The first samples of a few shards that lie far apart in the list, and which of the shard's images stay."""
    shards = request.shards
    chosen = sorted({len(shards) * part // SAMPLED_SHARDS for part in range(SAMPLED_SHARDS)})
    for index in chosen:
        images = None if request.choice is None else request.choice.of(shards[index])
        with ShardReader(shards[index], unsorted=request.spec.unsorted) as reader:
            samples = ((item, images) for item in reader if isinstance(item, Sample))
            yield from itertools.islice(samples, SAMPLED_IMAGES // len(chosen))


def _selectors(request: PruneRequest, scores_NL: NDArray[np.float32]) -> dict[str, Selector]:
    """What was asked for, or what it would be at each ratio of the sweep, by label."""
    ratios = request.config.sweep_ratios
    if not ratios:
        return {f"{asked_ratio(request.config):g}": _on_sample(request.selector, scores_NL)}
    return {f"{ratio:g}": _on_sample(request.selector.at(ratio), scores_NL) for ratio in ratios}


def _on_sample(selector: Selector, scores_NL: NDArray[np.float32]) -> Selector:
    """The selector with a threshold, which the sample gives where no plan has yet."""
    if selector.target is None or selector.threshold is not None:
        return selector
    assert selector.temperature is not None
    masses_NL = log_masses(scores_NL, selector.temperature)
    found = find_budget(
        lambda: [masses_NL], selector.target, floor=selector.floor or 1, ceiling=selector.ceiling
    )
    return dataclasses.replace(selector, threshold=found.threshold)


def _choice(
    request: PruneRequest,
    images: Sequence[RankedImage],
    scores_NL: NDArray[np.float32],
    label: str,
    keep_NL: Mask,
    pool: ThreadPoolExecutor,
    *,
    whole: int,
    teacher: Teacher | None,
) -> WayEstimate:
    written = request.spec.codec is not None
    image_bytes, members = _encoded_bytes(request, images, keep_NL, pool) if written else (0, 0)
    errors = None
    if teacher is not None:
        found_2N = mask_errors(teacher, torch.stack([image.patches for image, _ in images]), keep_NL)
        errors = (float(found_2N[0].mean()), float(found_2N[1].mean()))
    heat = request.selector.temperature or request.config.temperature or request.source.temperature
    return WayEstimate(
        label=label,
        kept=float(keep_NL.mean()),
        mass=None if heat is None else float(kept_mass(scores_NL, keep_NL, heat).mean()),
        bytes_after=members,
        of_reencoded=image_bytes / whole if written else None,
        errors=errors,
    )


def _whole_bytes(request: PruneRequest, images: Sequence[RankedImage], pool: ThreadPoolExecutor) -> int:
    """Bytes of the images when all patches stay, and nothing else."""
    alone = dataclasses.replace(request, spec=dataclasses.replace(request.spec, background=None))
    bare = [(dataclasses.replace(image, background=None), scores_L) for image, scores_L in images]
    everything_NL = np.ones((len(images), request.spec.grid**2), np.bool_)
    return _encoded_bytes(alone, bare, everything_NL, pool)[0]


def _encoded_bytes(
    request: PruneRequest, images: Sequence[RankedImage], keep_NL: Mask, pool: ThreadPoolExecutor
) -> tuple[int, int]:
    """Bytes of the written images alone, and of all members with their headers."""
    if request.spec.codec is None:
        return 0, 0
    prepared, scores = zip(*images, strict=True)
    written = list(pool.map(encode_image, prepared, scores, keep_NL, itertools.repeat(request.spec)))
    alone = sum(one.row.bytes_after for one in written if one.row is not None)
    return alone, _tar_bytes(member for one in written for member in one.members)


def _tar_bytes(members: Iterable[tuple[str, bytes]]) -> int:
    """Bytes of members in a tar, headers and padding with them."""
    return sum(BLOCK + len(data) + -len(data) % BLOCK for _, data in members)
