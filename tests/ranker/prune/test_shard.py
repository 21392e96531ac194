"""One shard pruned without Ray: masks, pixels, untouched fields, samples that cannot be pruned, equal bytes."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.views import apply_view, draw_view
from patchsieve.pipeline.pruned.codec import ImageCodec, decode_mosaic, flatten_dropped, unpack_mosaic
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.format import PackedRecord
from patchsieve.pipeline.pruned.sample import gather_patches
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.ranker.model.api import rank_images
from patchsieve.ranker.model.checkpoint import load_ranker
from patchsieve.ranker.select.online import keep_region, keep_topk, keep_window
from patchsieve.ranker.select.selection import keep_count, topk
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.prune_runs import (
    contents,
    index_footers,
    index_of,
    members_of,
    prune_config,
    prune_here,
    save_small_ranker,
)

COUNT = 6
SIZE, GRID = 64, 4


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_small_ranker(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos between other fields, one of them a picture that is none of the ranker's business."""
    samples = [
        (key, {"json": b'{"n": 1}', "jpg": fields["jpg"], "seg.png": b"mask", "cls": fields["cls"]})
        for key, fields in photo_samples(COUNT, height=90, width=120)
    ]
    return write_shard(tmp_path_factory.mktemp("shards") / "photos.tar", samples)


def crop_of(data: bytes, size: int = SIZE) -> torch.Tensor:
    """The central square of 7/8 of the shorter side, resized, as the ranker's crop."""
    image = decode_image(data)
    height, width = image.shape[1:]
    return apply_view(image, draw_view(0, "", 0, height=height, width=width, crop="center", size=SIZE), size)


def test_masks_and_pixels_are_those_of_the_ranker(shard: Path, ranker: str, tmp_path: Path) -> None:
    result = prune_here(prune_config([shard], tmp_path, ranker, codec="png", size=2 * SIZE))["photos.tar"]
    before, after = members_of(shard), members_of(tmp_path / "shards" / "photos.tar")
    photos = [data for name, data in before if name.endswith(".jpg")]
    scores_NL = rank_images(
        [decode_image(data).permute(1, 2, 0).numpy() for data in photos], load_ranker(ranker)
    )
    keep_NL = topk(scores_NL, keep_count(GRID**2, 0.5))
    files = dict(after)
    rows = index_of(tmp_path)
    assert len(rows) == COUNT
    for row, data, keep_L, scores_L in zip(rows, photos, keep_NL, scores_NL, strict=True):
        key = row["sample_key"]
        positions = np.flatnonzero(keep_L).tolist()
        record = PackedRecord.from_json(files[f"{key}.patches.json"])
        assert list(record.positions) == row["positions"] == positions
        assert row["scores"] == pytest.approx(scores_L[keep_L].tolist(), abs=1e-5)
        assert (record.original_size, record.block) == ((90, 120), 32)
        assert [row[f"crop_{name}"] for name in ("top", "left", "height", "width")] == list(record.crop)
        assert (row["kept"], row["grid"], row["reason"]) == (8, GRID, None)
        mosaic = files[f"{key}.patches.png"]
        assert (row["bytes_before"], row["bytes_after"]) == (
            len(data),
            len(mosaic) + len(files[f"{key}.patches.json"]),
        )
        blocks = crop_of(data, 2 * SIZE).reshape(3, GRID, 32, GRID, 32).permute(1, 3, 0, 2, 4)
        kept = unpack_mosaic(decode_mosaic(mosaic, record), record)
        assert torch.equal(kept, blocks.reshape(-1, 3, 32, 32)[positions])
    assert (result.images, result.kept, result.patches) == (COUNT, 8 * COUNT, 16 * COUNT)


def test_other_fields_keep_bytes_and_places(shard: Path, ranker: str, tmp_path: Path) -> None:
    prune_here(prune_config([shard], tmp_path, ranker))
    names = [name for name, _ in members_of(tmp_path / "shards" / "photos.tar")]
    key = names[0].partition(".")[0]
    expected = [f"{key}.{field}" for field in ("json", "patches.jpg", "patches.json", "seg.png", "cls")]
    assert names[:5] == expected
    others = [item for item in members_of(tmp_path / "shards" / "photos.tar") if ".patches." not in item[0]]
    assert others == [item for item in members_of(shard) if not item[0].endswith(".jpg")]
    (footer,) = index_footers(tmp_path).values()
    tar = tmp_path / "shards" / "photos.tar"
    assert footer["output"]["path"] == "shards/photos.tar"
    assert footer["output"]["size"] == tar.stat().st_size


def test_all_patches_kept_give_the_crop_back(shard: Path, ranker: str, tmp_path: Path) -> None:
    result = prune_here(prune_config([shard], tmp_path, ranker, codec="png", keep=1.0))["photos.tar"]
    # Whole crops and mosaics of all their patches hold the same pixels; as PNG both take more than the JPEGs did.
    assert result.grown == result.images > 0
    assert 0 < result.whole_bytes < result.whole_bytes_pruned < 2 * result.whole_bytes
    files = dict(members_of(tmp_path / "shards" / "photos.tar"))
    for name, data in members_of(shard):
        if name.endswith(".jpg"):
            record = PackedRecord.from_json(files[name.replace(".jpg", ".patches.json")])
            blocks = unpack_mosaic(decode_mosaic(files[name.replace(".jpg", ".patches.png")], record), record)
            whole = blocks.reshape(GRID, GRID, 3, 16, 16).permute(2, 0, 3, 1, 4).reshape(3, SIZE, SIZE)
            assert torch.equal(whole, crop_of(data))


def test_masked_images_stand_in_the_place_of_the_original(shard: Path, ranker: str, tmp_path: Path) -> None:
    prune_here(prune_config([shard], tmp_path, ranker, format="masked", codec="png"))
    before, after = members_of(shard), members_of(tmp_path / "shards" / "photos.tar")
    assert [name for name, _ in after] == [name.replace(".jpg", ".png") for name, _ in before]
    for row in index_of(tmp_path):
        key = row["sample_key"]
        keep_L = np.isin(np.arange(GRID**2), row["positions"])
        expected = flatten_dropped(crop_of(dict(before)[f"{key}.jpg"]), keep_L, GRID)
        assert torch.equal(decode_image(dict(after)[f"{key}.png"]), expected)


def test_an_index_alone_writes_no_shards(shard: Path, ranker: str, tmp_path: Path) -> None:
    result = prune_here(prune_config([shard], tmp_path, ranker, format="index", crop="squash"))["photos.tar"]
    assert not (tmp_path / "shards").exists()
    assert [row["bytes_after"] for row in index_of(tmp_path)] == [0] * COUNT
    assert [(row["crop_height"], row["crop_width"]) for row in index_of(tmp_path)] == [(90, 120)] * COUNT
    assert (result.tar_bytes, next(iter(index_footers(tmp_path).values()))["output"]) == (0, {})


BAD = [
    ("good", {"jpg": photo(1, 90, 120), "cls": b"1"}),
    ("text", {"jpg": b"no picture", "cls": b"2"}),
    ("none", {"cls": b"3"}),
    ("taken", {"jpg": photo(2, 90, 120), "patches.json": b"{}"}),
    ("good", {"jpg": photo(3, 90, 120)}),
    ("last", {"jpg": photo(4, 90, 120)}),
]


def test_what_cannot_be_pruned_is_copied_and_listed(ranker: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in" / "bad.tar", BAD)
    result = prune_here(prune_config([path], tmp_path / "out", ranker))["bad.tar"]
    after = members_of(tmp_path / "out" / "shards" / "bad.tar")
    left = [item for item in members_of(path) if item[0].split(".")[0] in ("text", "none", "taken")]
    assert [item for item in after if item[0].split(".")[0] in ("text", "none", "taken")] == left
    assert after[-3] == ("good.jpg", BAD[4][1]["jpg"]), "a key that came before"
    assert (result.samples, result.images, result.quarantined) == (6, 2, 4)
    rows = {row["sample_key"]: row for row in index_of(tmp_path / "out")}
    assert list(rows) == ["good", "text", "none", "taken", "last"]
    assert rows["good"]["reason"] is None
    assert rows["text"]["reason"] == "decode: not an image of a known format"
    assert rows["none"]["reason"] == "sample: no image field; fields: cls"
    assert (
        rows["taken"]["reason"]
        == "sample: it has a member taken.patches.json already, which pruning would write"
    )
    assert rows["text"]["positions"] is None
    assert rows["text"]["bytes_before"] == rows["text"]["bytes_after"] == len(b"no picture2")
    (errors,) = (tmp_path / "out" / "errors").glob("*.parquet")
    assert [row["sample_key"] for row in pq.read_table(errors).to_pylist()] == [
        "text",
        "none",
        "taken",
        "good",
    ]


def test_bad_samples_can_be_left_out(ranker: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in" / "bad.tar", BAD)
    prune_here(prune_config([path], tmp_path / "out", ranker, drop_bad=True))
    names = [name for name, _ in members_of(tmp_path / "out" / "shards" / "bad.tar")]
    assert names == [
        "good.patches.jpg",
        "good.patches.json",
        "good.cls",
        "last.patches.jpg",
        "last.patches.json",
    ]
    assert [row["bytes_after"] for row in index_of(tmp_path / "out")][1:4] == [0, 0, 0]


def test_a_damaged_archive_fails_unless_it_is_to_be_salvaged(ranker: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in" / "cut.tar", photo_samples(3, height=90, width=120))
    with tarfile.open(path) as archive:
        end = archive.getmember("photo-0-0002.jpg").offset_data + 100
    path.write_bytes(path.read_bytes()[:end])
    config = prune_config([path], tmp_path / "out", ranker)
    result = prune_here(config)["cut.tar"]
    assert result.failed is not None
    assert result.failed.startswith("damaged archive: the ")
    assert not list((tmp_path / "out").rglob("*.tar"))
    assert not (tmp_path / "out" / "index").exists()
    salvaged = prune_here(prune_config([path], tmp_path / "out", ranker, salvage=True))["cut.tar"]
    assert (salvaged.failed, salvaged.damaged) == (None, True)
    assert (salvaged.images, salvaged.samples) == (2, 3)


def test_a_shard_without_any_image_fails(ranker: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in" / "text.tar", [("a", {"txt": b"1"}), ("b", {"txt": b"2"})])
    failed = prune_here(prune_config([path], tmp_path / "out", ranker))["text.tar"].failed
    assert failed is not None
    assert failed.startswith("none of its 2 samples could be pruned")


def test_equal_bytes_whatever_the_threads(ranker: str, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "in" / "a.tar", [*photo_samples(9, height=90, width=120), BAD[1]])
    for threads in (1, 3):
        prune_here(prune_config([path], tmp_path / str(threads), ranker), threads=threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    before = path.read_bytes()
    assert expand_shards([str(path)])[0].size == len(before), "inputs are never modified"


def test_random_patches_and_baselines(shard: Path, ranker: str, tmp_path: Path) -> None:
    prune_here(prune_config([shard], tmp_path / "random", ranker, select="random", keep=0.25, seed=1))
    prune_here(prune_config([shard], tmp_path / "cluster", ranker, select="cluster", keep=0.25))
    prune_here(prune_config([shard], tmp_path / "variance", "baseline:variance"))
    assert [row["kept"] for row in index_of(tmp_path / "random")] == [4] * COUNT
    assert [row["kept"] for row in index_of(tmp_path / "cluster")] == [4] * COUNT
    assert [row["kept"] for row in index_of(tmp_path / "variance")] == [98] * COUNT
    assert len({json.dumps(row["positions"]) for row in index_of(tmp_path / "random")}) > 1


@pytest.mark.parametrize("size", [SIZE, 2 * SIZE])
def test_every_way_to_read_thumbnails_is_the_same(
    shard: Path, ranker: str, tmp_path: Path, size: int
) -> None:
    options: dict[str, Any] = {"background": 32, "keep": 0.75, "size": size}
    packed_run = prune_config([shard], tmp_path / "packed", ranker, codec="png", **options)
    result = prune_here(packed_run)["photos.tar"]
    coarse = 4 * SIZE**2 // size**2
    assert (result.kept, result.coarse, result.patches) == ((12 - coarse) * COUNT, coarse * COUNT, 16 * COUNT)
    prune_here(prune_config([shard], tmp_path / "masked", ranker, format="masked", codec="png", **options))
    if size == SIZE:
        prune_here(
            prune_config([shard], tmp_path / "index", ranker, format="index", background=32, keep=0.75)
        )
    before, files = dict(members_of(shard)), dict(members_of(tmp_path / "packed" / "shards" / "photos.tar"))
    masked = dict(members_of(tmp_path / "masked" / "shards" / "photos.tar"))
    packed = list(PrunedDataset(str(tmp_path / "packed" / "shards")))
    rows = {row["sample_key"]: row for row in index_of(tmp_path / "packed")}
    assert len(packed) == COUNT
    for sample in packed:
        image = before[f"{sample.key}.jpg"]
        names = [f"{sample.key}.{name}" for name in ("patches.png", "patches.json", "background.jpg")]
        assert rows[sample.key]["bytes_after"] == sum(len(files[name]) for name in names)
        assert [name for name in files if name.startswith(f"{sample.key}.")][1:4] == names
        small = crop_of(image, 32)
        told = json.loads(files[names[1]])
        assert (told["version"], told["background"], told["block"]) == (3, 32, size // GRID)
        assert sample.background is not None
        assert torch.equal(sample.background, decode_image(ImageCodec("jpeg", 90).encode(small)))
        assert "background.jpg" not in sample.fields
        exact = dataclasses.replace(sample, background=small)
        assert torch.equal(decode_image(masked[f"{sample.key}.png"]), exact.to_image())
    if size == SIZE:
        by_index = list(PrunedDataset(str(shard), index=str(tmp_path / "index"), image_field="jpg"))
        chosen = keep_topk(load_ranker(ranker, device="cpu"), 0.5)
        online = list(PrunedDataset(str(shard), select=chosen, size=SIZE, background=32, image_field="jpg"))
        for one, other, third in zip(packed, by_index, online, strict=True):
            assert other.background is not None
            assert torch.equal(other.background, crop_of(before[f"{one.key}.jpg"], 32))
            assert torch.equal(other.background, third.background)
            assert torch.equal(one.patches, other.patches)
            assert torch.equal(one.patches, third.patches)


def test_a_sample_that_has_a_thumbnail_already_is_left(ranker: str, tmp_path: Path) -> None:
    taken = [("taken", {"jpg": photo(2, 90, 120), "background.jpg": b"mine"}), BAD[0]]
    path = write_shard(tmp_path / "in" / "a.tar", taken)
    prune_here(prune_config([path], tmp_path / "out", ranker, background=16))
    assert index_of(tmp_path / "out")[0]["reason"] == (
        "sample: it has a member taken.background.jpg already, which pruning would write"
    )


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({"select": "window"}, partial(keep_window, ratio=0.25)),
        ({"select": "window", "windows": 2}, partial(keep_window, ratio=0.25, windows=2)),
        ({"select": "region", "compactness": 1.0}, partial(keep_region, ratio=0.25, compactness=1.0)),
    ],
)
def test_every_way_to_read_regions_is_the_same(
    shard: Path, ranker: str, tmp_path: Path, options: dict[str, Any], keep: Any
) -> None:
    for form in ("packed", "masked", "index"):
        codec = {} if form == "index" else {"codec": "png"}
        prune_here(prune_config([shard], tmp_path / form, ranker, format=form, keep=0.25, **codec, **options))
    rows = {form: index_of(tmp_path / form) for form in ("packed", "masked", "index")}
    positions = {row["sample_key"]: row["positions"] for row in rows["packed"]}
    assert all({row["sample_key"]: row["positions"] for row in found} == positions for found in rows.values())
    packed = list(PrunedDataset(str(tmp_path / "packed" / "shards")))
    by_index = list(PrunedDataset(str(shard), index=str(tmp_path / "index"), image_field="jpg"))
    online = PrunedDataset(
        str(shard), select=keep(load_ranker(ranker, device="cpu")), size=SIZE, image_field="jpg"
    )
    masked = dict(members_of(tmp_path / "masked" / "shards" / "photos.tar"))
    for one, other, chosen in zip(packed, by_index, online, strict=True):
        assert one.positions.tolist() == other.positions.tolist() == positions[one.key]
        assert torch.equal(chosen.positions, one.positions)
        assert torch.equal(one.patches, other.patches)
        assert torch.equal(one.patches, chosen.patches)
        seen = decode_image(masked[f"{one.key}.png"])
        assert torch.equal(gather_patches(seen, one.positions, one.block), one.patches)
