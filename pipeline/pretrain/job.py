"""A pretraining run from shards to a finished teacher: photos into memory, training, export, measurement."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from patchsieve.pipeline import storage
from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.pretrain.config import PretrainConfig
from patchsieve.pipeline.pretrain.report import (
    ReconstructionErrors,
    reconstruction_errors,
    teacher_prediction,
)
from patchsieve.pipeline.pretrain.training import Pretraining
from patchsieve.pipeline.row_config import IMAGE_FIELDS
from patchsieve.pipeline.shards.reader import Sample, ShardReader, image_fields_of, pick_image
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.teacher.build import save_teacher
from patchsieve.pipeline.teacher.ready import choose_precision
from patchsieve.pipeline.units import duration

KEPT_MARGIN = 15 / 14
"""Photos are kept at this many times the image size on their shorter side: crops then hardly enlarge."""


def load_photos(specs: Sequence[str], shorter_side: int, *, unsorted: bool = False) -> list[Tensor]:
    """Decode all photos of shards once, shrunk to a shorter side in pixels; unreadable ones are left out.

    `unsorted`: as `ShardReader` has it.
    """

    def load(sample: Sample) -> Tensor | None:
        try:
            picked = pick_image(sample, IMAGE_FIELDS)
            photo = None if picked is None else decode_image(picked[1])
        except ContentError:
            return None
        if photo is None:
            return None
        scale = shorter_side / min(photo.shape[1:])
        if scale >= 1:
            return photo
        sides = [max(shorter_side, math.floor(side * scale)) for side in photo.shape[1:]]
        return interpolate(photo[None], size=sides, mode="bicubic", antialias=True)[0]

    photos: list[Tensor] = []
    wanted = set(image_fields_of(IMAGE_FIELDS))
    with ThreadPoolExecutor() as pool:
        for shard in expand_shards(specs):
            with ShardReader(
                shard, keep_fields=lambda field: field.lower() in wanted, unsorted=unsorted
            ) as reader:
                samples = [item for item in reader if isinstance(item, Sample)]
            found = pool.map(load, samples)
            photos += [photo for photo in found if photo is not None]
    if not photos:
        raise UserError(f"no readable photo in {', '.join(specs)}")
    return photos


def pretrain(config: PretrainConfig, say: Callable[[str], None]) -> None:
    """Run a pretraining; `say` gets lines of progress.

    Leaves in OUT: `checkpoint.pt`, `curve.csv` (step, training loss, held-out error), `teacher.safetensors` and
    `teacher.json`, and `evaluation.json` with the errors on the held-out photos.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "checkpoint.pt").exists() and not config.resume:
        raise UserError(
            f"{out} holds a pretraining run: add --resume to go on with it, or choose another folder"
        )
    device = this_device()
    shorter_side = round(config.image_size * KEPT_MARGIN)
    photos = load_photos(config.shards, shorter_side, unsorted=config.unsorted)
    held_out = load_photos(config.test, shorter_side, unsorted=config.unsorted)
    run = Pretraining(config, photos, held_out, out, device=device)
    precision = config.precision
    if precision == "auto":
        precision = "fp32" if choose_precision(run.model.eval(), device) == "fp32" else "bf16"
    run.half = precision == "bf16"
    run.model.train()
    say(f"{len(photos)} photos to train on, {len(held_out)} to measure on, {device}, {precision}")
    if config.resume and run.resume():
        say(f"resumed at step {run.step}")
    run.run(every=config.report_every, report=_reporter(run, say))
    predict = teacher_prediction(run.model.eval())
    save_teacher(run.model, str(out), half=True, name=out.name)
    if config.target == "pixels":
        errors = reconstruction_errors(
            held_out,
            predict,
            size=config.image_size,
            patch_size=config.patch_size,
            mask_ratio=config.mask_ratio,
        )
        content = {
            **dataclasses.asdict(errors),
            "explained": errors.explained,
            "config": storage.kept_settings(config),
        }
        data = json.dumps(content, indent=1).encode()
        storage.commit_bytes(data, str(out / "evaluation.json"), run_id="pretrain")
        say(verdict(errors))
    say(f"teacher in {out}")


def verdict(errors: ReconstructionErrors) -> str:
    """What the teacher explains of the hidden pixels, beside the best predictor that knows nothing."""
    names = {
        "nearest_visible": "repeating the nearest visible patch",
        "mean_visible": "the mean of the visible patches",
        "zero": "ImageNet's mean colour",
    }
    shares = errors.explained
    best = max(names, key=lambda name: shares[name])
    told = (
        f"on {errors.photos} held-out photos the teacher explains {shares['teacher']:.1%} of the variance of hidden "
        f"pixels, {names[best]} {shares[best]:.1%}"
    )
    if shares["teacher"] > shares[best]:
        return told
    return f"{told}: it is no better than that, and its scores say nothing. Train longer, or on more photos"


def _reporter(run: Pretraining, say: Callable[[str], None]) -> Callable[[int, float, float], None]:
    started, first = time.monotonic(), run.step

    def report(step: int, loss: float, error: float) -> None:
        rate = (step - first) * run.config.batch_size / (time.monotonic() - started)
        left = duration((run.config.steps - step) * run.config.batch_size / rate)
        say(f"step {step}  loss {loss:.4f}  held-out error {error:.4f}  {rate:.0f} images/s  {left} left")

    return report
