"""What pruning saves, bytes and quality of the image files, tokens and the time of a training step; how fast it is.

    python -m benchmarks.prune [--shards SHARDS...] [--keep 0.5] [--ranker ranker/tiny]

The honest baseline is a plain re-encode of the same crop with the same codec and quality. Beside the pruned forms
stand two ways to spend as little without a ranker: the whole image at a lower resolution (as many tokens), and at a
lower quality (as many bytes). Bytes are those of image files and records; `in a tar` adds headers and padding. PSNR is
pooled over all images: of the patches that the ranker keeps, and of the whole crop where a form has it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import tyro
from numpy.typing import NDArray

from benchmarks._common import measure, ratio, show, write_json
from benchmarks._photos import photo_files
from benchmarks._prune_job import measure_job
from benchmarks._pruned_forms import Form, Photo, packed, progressive, psnr, quality_of_bytes, whole
from patchsieve.pipeline.compute.device import this_device
from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import apply_view, center_box
from patchsieve.pipeline.pruned.codec import ImageCodec, flatten_dropped
from patchsieve.pipeline.pruned.collate import collate_naflex, place_by_coordinate
from patchsieve.pipeline.pruned.format import mosaic_columns
from patchsieve.pipeline.pruned.sample import PrunedSample, gather_patches
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.select.online import keep_topk

GOAL, MOST_LOST = 0.6, 0.5
EVERY, SYNTHETIC = 10**9, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Benchmark of the pruned formats."""

    shards: tuple[str, ...] = ()
    """Shards of photographs; by default 40 synthetic photos, whose bytes say little."""
    ranker: str = str(Path(__file__).parents[1] / "ranker" / "tiny")
    """Folder of the ranker."""
    keep: float = 0.5
    """Share of the patches that stay."""
    quality: int = 90
    """JPEG quality of every form but the one of equal bytes."""
    batch_size: int = 8
    """Images per measured training step."""
    rounds: int = 3
    """Measured training steps; 0 leaves them out."""
    job_rounds: int = 3
    """Measured runs of the job and of the bare loop; 0 leaves them out."""
    actors: int = 2
    """Actors of the job."""
    seconds: float = 20.0
    """Time of the job and of the bare loop in one round, about; the job's starting up comes on top."""
    out: Path = Path("bench-out/prune.json")
    """Results as JSON."""


def photos_of(files: Sequence[bytes], options: Options) -> tuple[list[Photo], int, int]:
    """The photos with their keep masks, and the ranker's grid and patch size."""
    ranker = load_ranker(options.ranker)
    choose, size, photos = keep_topk(ranker, options.keep), ranker.config.image_size, []
    for file in files:
        image = decode_image(file)
        height, width = image.shape[1:]
        box = center_box(height, width, size=size)
        pixels = apply_view(image, box, size)
        photo = Photo(
            file_bytes=len(file),
            image_size=(height, width),
            crop=(box.top, box.left, box.height, box.width),
            pixels=pixels,
            keep=choose(pixels),
        )
        photos.append(photo)
    return photos, ranker.config.grid, ranker.config.patch_size


def forms_of(photos: Sequence[Photo], grid: int, block: int, options: Options) -> dict[str, Form]:
    """Every way to store the photos, by name."""
    encode, other = ImageCodec("jpeg", options.quality).encode, progressive(options.quality)
    size, row = grid * block, mosaic_columns
    forms = {
        "re-encode": whole(photos, block, encode),
        "packed": packed(photos, grid, block, row, encode),
        "masked": whole(photos, block, encode, lambda photo: flatten_dropped(photo.pixels, photo.keep, grid)),
        "re-encode, progressive": whole(photos, block, other),
        "packed, progressive": packed(photos, grid, block, row, other),
        "packed, square mosaic": packed(photos, grid, block, lambda n, _: math.isqrt(n - 1) + 1, encode),
        "packed, two blocks wide": packed(photos, grid, block, lambda n, _: min(2, n), encode),
    }
    side = max(1, round(math.sqrt(options.keep) * grid)) * block
    forms[f"whole at {side} px"] = whole(photos, block, encode, side=side)
    quality = quality_of_bytes(photos, forms["packed"].image_bytes)
    forms[f"whole at {size} px, quality {quality}"] = whole(photos, block, ImageCodec("jpeg", quality).encode)
    return forms


def multiply_adds(tokens: int, width: int = 768, depth: int = 12, patch_values: int = 768) -> float:
    """Billions of multiply-adds of a ViT-B (what papers call GFLOPs) for an image of so many tokens."""
    return (depth * (12 * tokens * width**2 + 2 * tokens**2 * width) + tokens * patch_values * width) / 1e9


def step_seconds(photos: Sequence[Photo], grid: int, block: int, options: Options) -> dict[str, list[float]]:
    """Seconds of training steps of timm's NaFlexVit of ViT-B size on pruned and on full images, taking turns."""
    device = this_device()
    model = timm.create_model(
        "naflexvit_base_patch16_gap", num_classes=1000, pos_embed_grid_size=(grid, grid)
    )
    model = place_by_coordinate(model).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4)
    few = [photos[number % len(photos)] for number in range(options.batch_size)]

    def run_of(masks: Sequence[NDArray[np.bool_]]) -> Callable[[], None]:
        batch = collate_naflex([_sample(*pair, grid, block) for pair in zip(few, masks, strict=True)])
        batch = {name: value.to(device) for name, value in batch.items()}
        labels = torch.zeros(len(few), dtype=torch.int64, device=device)

        def run() -> None:
            loss = torch.nn.functional.cross_entropy(model(batch), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()  # waits for a GPU

        return run

    every = [np.ones(grid**2, np.bool_)] * len(few)
    return measure({"full": run_of(every), "pruned": run_of([photo.keep for photo in few])}, options.rounds)


def measure_bytes(photos: Sequence[Photo], grid: int, block: int, options: Options) -> dict[str, Any]:
    """Bytes and quality of every form; prints them as a table."""
    forms = forms_of(photos, grid, block, options)
    before, base = sum(photo.file_bytes for photo in photos), forms["re-encode"]
    rows = [["originals", f"{before / len(photos):.0f}", "", f"{before / base.image_bytes:.3f}", "", "", ""]]
    results = {}
    for name, form in forms.items():
        told = {
            "bytes": form.image_bytes,
            "of_originals": form.image_bytes / before,
            "of_re_encode": form.image_bytes / base.image_bytes,
            "of_re_encode_in_tar": form.tar_bytes / base.tar_bytes,
            "kept_psnr": psnr(form.kept_error),
            "whole_psnr": psnr(form.whole_error) if form.whole_error else None,
        }
        results[name] = told
        shown = [f"{told[key]:.3f}" for key in ("of_originals", "of_re_encode", "of_re_encode_in_tar")]
        quality = ["" if told[key] is None else f"{told[key]:.2f}" for key in ("kept_psnr", "whole_psnr")]
        rows.append([name, f"{form.image_bytes / len(photos):.0f}", *shown, *quality])
    columns = ["", "bytes", "of orig.", "of re-enc.", "in a tar", "kept dB", "whole dB"]
    show(f"{len(photos)} photos, {options.keep} of the patches, quality {options.quality}", columns, rows)
    share = forms["packed"].image_bytes / base.image_bytes
    lost = psnr(base.kept_error) - psnr(forms["packed"].kept_error)
    print(f"packed is {share:.3f} of the re-encode (goal: {GOAL} or below: {_met(share <= GOAL)})")
    print(
        f"kept patches lose {lost:.2f} dB more than in the re-encode (goal: {MOST_LOST}: {_met(lost <= MOST_LOST)})"
    )
    return {"bytes_before": before, "images": len(photos), "forms": results}


def main(options: Options) -> None:
    """Measure, print tables, write the JSON."""
    files = photo_files(options.shards, EVERY if options.shards else SYNTHETIC)
    if not files:
        raise UserError(f"no photos in {list(options.shards)}: name shards of photographs")
    photos, grid, block = photos_of(files, options)
    report = measure_bytes(photos, grid, block, options)
    kept = int(photos[0].keep.sum())
    macs = multiply_adds(grid**2), multiply_adds(kept)
    report["cost"] = {"tokens": [grid**2, kept], "vit_b_gmacs": list(macs)}
    print(f"tokens {grid**2} -> {kept}; ViT-B {macs[0]:.2f} -> {macs[1]:.2f} G multiply-adds")
    if options.rounds:
        report["step_seconds"] = seconds = step_seconds(photos, grid, block, options)
        report["step_speedup"] = ratio(seconds, "pruned", "full")
        print(
            f"training steps of {options.batch_size}: pruned {report['step_speedup']:.2f} times as fast as full"
        )
    if options.job_rounds:
        report["job"] = measure_job(
            files,
            ranker=options.ranker,
            keep=options.keep,
            quality=options.quality,
            actors=options.actors,
            rounds=options.job_rounds,
            seconds=options.seconds,
        )
    source = list(options.shards) or "synthetic photos, 500 x 375"
    write_json({"prune": report, "source": source}, options.out)


def _met(goal: bool) -> str:
    return "met" if goal else "missed"


def _sample(photo: Photo, keep_L: NDArray[np.bool_], grid: int, block: int) -> PrunedSample:
    at = torch.from_numpy(np.flatnonzero(keep_L))
    return PrunedSample(
        shard="",
        key="",
        patches=gather_patches(photo.pixels, at, block),
        positions=at,
        grid=grid,
        block=block,
        original_size=photo.image_size,
        crop=photo.crop,
        fields={},
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
