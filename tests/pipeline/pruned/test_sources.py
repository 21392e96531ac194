"""Original shards read as pruned ones: by an index, or with patches chosen on the spot."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision import transforms

from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.sample import PrunedSample
from patchsieve.ranker.model.checkpoint import LoadedRanker, load_ranker, save_ranker
from patchsieve.ranker.select.online import keep_topk
from tests.helpers.prune_runs import prune_config, prune_here
from tests.helpers.rankers import TEACHER, small_ranker
from tests.pipeline.pruned.pruned_shards import make_photos, write_index, write_original, write_packed


def same(one: PrunedSample, other: PrunedSample) -> bool:
    names = ("key", "grid", "block", "original_size", "crop", "fields")
    return (
        all(getattr(one, name) == getattr(other, name) for name in names)
        and torch.equal(one.patches, other.patches)
        and torch.equal(one.positions, other.positions)
    )


@pytest.mark.parametrize("block", [16, 32])
def test_an_index_gives_what_packing_gives(tmp_path: Path, block: int) -> None:
    photos = make_photos(3, block=block)
    shard = write_original(tmp_path / "in" / "a.tar", photos)
    write_index(tmp_path / "out", shard, photos)
    write_packed(tmp_path / "packed" / "a.tar", photos)
    by_index = list(PrunedDataset(str(tmp_path / "in"), index=str(tmp_path / "out")))
    packed = list(PrunedDataset(str(tmp_path / "packed")))
    assert len(by_index) == 3
    assert all(same(one, other) for one, other in zip(by_index, packed, strict=True))


def test_an_index_cuts_a_larger_crop(tmp_path: Path) -> None:
    photos, larger = make_photos(2), make_photos(2, block=32)
    shard = write_original(tmp_path / "a.tar", photos)
    write_index(tmp_path / "out", shard, photos)
    for sample, photo in zip(
        PrunedDataset(shard.url, index=str(tmp_path / "out"), size=128), larger, strict=True
    ):
        assert (sample.block, sample.positions.tolist()) == (32, list(photo.record.positions))
        y, x = (32 * at for at in divmod(photo.record.positions[3], 4))
        assert torch.equal(
            sample.patches[3], photo.crop_pixels[:, y : y + 32, x : x + 32].permute(1, 2, 0).flatten()
        )


def test_index_rows_without_positions(tmp_path: Path) -> None:
    photos = make_photos(3)
    shard = write_original(tmp_path / "a.tar", photos)
    changes = {
        photos[0].key: {"positions": None, "reason": "dropped: image score 0.1"},
        photos[1].key: {"positions": None, "reason": "decode: not an image"},
    }
    write_index(tmp_path / "out", shard, photos, **changes)
    told: list[str] = []

    def note(error: Exception) -> bool:
        told.append(str(error))
        return True

    dataset = PrunedDataset(shard.url, index=str(tmp_path / "out"), handler=note)
    assert [sample.key for sample in dataset] == [photos[2].key]
    assert len(told) == 1
    assert told[0].endswith(f"{photos[1].key}: its index row has no positions: decode: not an image")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_width": 7}, "the image has 90 x 120 pixels, in the index 90 x 7"),
        ({"grid": 5}, "a grid of 5 for 64 px"),
        ({"grid": None}, "a grid of 0 for 64 px"),
        ({"positions": [3, 99]}, "position 99 is out"),
        ({"positions": []}, "0 positions"),
        ({"crop_top": 40}, "does not lie"),
        ({"crop_height": None}, "does not lie"),
        ({"sample_key": "another"}, "does not know this sample"),
    ],
)
def test_index_rows_that_do_not_fit(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    photos = make_photos(1)
    shard = write_original(tmp_path / "a.tar", photos)
    write_index(tmp_path / "out", shard, photos, **{photos[0].key: change})
    with pytest.raises(ContentError, match=rf"{photos[0].key}: .*{reason}"):
        list(PrunedDataset(shard.url, index=str(tmp_path / "out")))


def test_indexes_that_are_not_there_or_none(tmp_path: Path) -> None:
    photos = make_photos(1)
    shard = write_original(tmp_path / "a.tar", photos)
    with pytest.raises(UserError, match=r"no index of .*a\.tar .*--root"):
        list(PrunedDataset(shard.url, index=str(tmp_path / "out")))
    path = write_index(tmp_path / "out", shard, photos)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is damaged"):
        list(PrunedDataset(shard.url, index=str(tmp_path / "out")))


def test_an_index_of_another_shard_of_that_name(tmp_path: Path) -> None:
    shard = write_original(tmp_path / "a.tar", make_photos(2))
    write_index(tmp_path / "out", shard, make_photos(2))
    write_original(tmp_path / "a.tar", make_photos(9))
    with pytest.raises(
        UserError, match=rf"a\.tar has \d+ bytes, and had {shard.size} when .* prune it again"
    ):
        list(PrunedDataset(shard.url, index=str(tmp_path / "out")))


def test_flipped_bits_of_an_index_are_told(tmp_path: Path) -> None:
    photos = make_photos(3)
    (tmp_path / "in").mkdir()
    shard = write_original(tmp_path / "in" / "a.tar", photos)
    prune_here(
        prune_config([shard.url], tmp_path / "out", "baseline:variance", format="index", precision="auto")
    )
    (path,) = (tmp_path / "out" / "index").glob("*.parquet")
    sound = path.read_bytes()

    def kept() -> list[tuple[str, list[int]]]:
        return [
            (sample.key, sample.positions.tolist())
            for sample in PrunedDataset(shard.url, index=str(tmp_path / "out"))
        ]

    expected = kept()
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    (positions,) = (one for one in columns if one.path_in_schema.startswith("positions."))
    start = min(positions.data_page_offset, positions.dictionary_page_offset or positions.data_page_offset)
    changed = refused = 0
    for place, bit in itertools.product(range(start, start + positions.total_compressed_size), (1, 5)):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            changed += kept() != expected
        except (UserError, ContentError):
            refused += 1
    # Three other bits of a page's header, which has no checksum, would change something.
    assert changed == 0 < refused


def list_of_one(sample: PrunedSample) -> list[PrunedSample]:
    return [sample]


def brightest(pixels: torch.Tensor) -> torch.Tensor:
    """The four brightest of 4 x 4 patches."""
    side = pixels.shape[1] // 4
    means = pixels.float().mean(0).reshape(4, side, 4, side).mean(dim=(1, 3)).flatten()
    keep = torch.zeros(16, dtype=torch.bool)
    keep[means.topk(4).indices] = True
    return keep


def test_patches_are_chosen_on_the_spot(tmp_path: Path) -> None:
    photos = make_photos(3)
    shard = write_original(tmp_path / "a.tar", photos)
    found = list(PrunedDataset(shard.url, select=brightest, size=64))
    for sample, photo in zip(found, photos, strict=True):
        keep = brightest(photo.crop_pixels)
        assert torch.equal(sample.positions, keep.nonzero()[:, 0])
        inside = keep.reshape(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
        assert torch.equal(sample.to_image(0)[:, inside], photo.crop_pixels[:, inside])
        assert (sample.crop, sample.original_size) == (photo.record.crop, photo.record.original_size)
        assert sample.fields == {"cls": photo.fields["cls"]}


def test_patches_are_chosen_after_the_augmentation(tmp_path: Path) -> None:
    photos = make_photos(2)
    shard = write_original(tmp_path / "a.tar", photos)
    augment = transforms.Compose([transforms.RandomResizedCrop(96), transforms.RandomHorizontalFlip()])
    seen: list[torch.Tensor] = []

    def select(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return brightest(pixels)

    for sample, pixels in zip(PrunedDataset(shard.url, select=select, transform=augment), seen, strict=False):
        assert (sample.size, sample.block, sample.crop) == (96, 24, None)
        y, x = (24 * at for at in divmod(int(sample.positions[1]), 4))
        cut = pixels[:, y : y + 24, x : x + 24].permute(1, 2, 0).flatten()
        assert torch.equal(sample.patches[1], cut)
    assert len(seen) == 2


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> LoadedRanker:
    folder = str(tmp_path_factory.mktemp("ranker"))
    save_ranker(folder, small_ranker(), teacher=TEACHER, tables=["t"], temperature=1.0)
    return load_ranker(folder, device="cpu")


@pytest.mark.forks
@pytest.mark.parametrize("size", [64, 128])
def test_a_ranker_chooses(tmp_path: Path, ranker: LoadedRanker, size: int) -> None:
    photos = make_photos(3, block=size // 4)
    shard = write_original(tmp_path / "a.tar", photos)
    dataset = PrunedDataset(shard.url, select=keep_topk(ranker, 0.25), size=size)
    loader = DataLoader(dataset, None, num_workers=1, collate_fn=list_of_one)
    for (sample,), photo in zip(loader, photos, strict=True):
        small = interpolate(photo.crop_pixels[None], (64, 64), mode="bicubic", antialias=True)
        with torch.inference_mode():
            scores = ranker.model.forward_image(patchify(small, 16))[0].numpy()
        assert sample.positions.tolist() == sorted(np.argsort(-scores, kind="stable")[:4].tolist())


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_workers_cannot_use_a_ranker_on_a_gpu(tmp_path: Path, ranker: LoadedRanker, device: str) -> None:
    shard = write_original(tmp_path / "a.tar", make_photos(1))
    elsewhere = dataclasses.replace(ranker, model=copy.deepcopy(ranker.model).to(device))
    dataset = PrunedDataset(shard.url, select=keep_topk(elsewhere, 0.25), size=64)
    loader = DataLoader(dataset, None, num_workers=1, collate_fn=list_of_one)
    with pytest.raises(UserError, match=rf'is on {device}.*load_ranker\(\.\.\., device="cpu"\)'):
        next(iter(loader))


def test_what_a_ranker_cannot_choose(ranker: LoadedRanker) -> None:
    with pytest.raises(UserError, match="keep ratio is 0"):
        keep_topk(ranker, 0)
    with pytest.raises(UserError, match=r"\[3, 90, 90\] does not fit the ranker's 4 x 4 patches"):
        keep_topk(ranker, 0.5)(torch.zeros(3, 90, 90, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("select", "transform", "reason"),
    [
        (lambda pixels: np.ones(15, np.bool_), None, r"select gave bool \[15\]"),
        (lambda pixels: np.zeros(16, np.bool_), None, "with a patch to keep"),
        (lambda pixels: np.ones(16), None, "select gave float64"),
        (lambda pixels: np.ones(25, np.bool_), None, "square grid that divides it"),
        (brightest, lambda image: image.float(), "transform gave Tensor torch.float32"),
        (brightest, lambda image: image[:, :8, :4], r"transform gave Tensor torch.uint8 \[3, 8, 4\]"),
    ],
)
def test_selections_that_cannot_be(tmp_path: Path, select: Any, transform: Any, reason: str) -> None:
    shard = write_original(tmp_path / "a.tar", make_photos(1))
    size = 64 if transform is None else None
    with pytest.raises(UserError, match=reason):
        list(PrunedDataset(shard.url, select=select, transform=transform, size=size))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"index": "x", "select": brightest}, "give one of them"),
        ({"transform": brightest}, "a transform needs select"),
        ({"size": 64}, "packed shards and a transform have their own"),
        ({"select": brightest, "transform": brightest, "size": 64}, "packed shards and a transform"),
        ({"select": brightest, "size": 0}, "size is 0 pixels"),
        ({"background": 32}, "background goes with select"),
        ({"select": brightest, "background": 0}, "background is 0 pixels"),
    ],
)
def test_settings_that_exclude_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        PrunedDataset("x.tar", **options)


def test_thumbnails_larger_than_the_crop(tmp_path: Path) -> None:
    shard = write_original(tmp_path / "a.tar", make_photos(1))
    with pytest.raises(UserError, match="a background of 80 px for a crop of 64 px"):
        list(PrunedDataset(shard.url, select=brightest, size=64, background=80))


def test_a_thumbnail_of_what_the_transform_made(tmp_path: Path) -> None:
    shard = write_original(tmp_path / "a.tar", make_photos(1))

    def mirrored(image: torch.Tensor) -> torch.Tensor:
        return image[:, :64, :64].flip(2)

    (sample,) = PrunedDataset(shard.url, select=brightest, transform=mirrored, background=32)
    whole = mirrored(decode_image(make_photos(1)[0].fields["jpg"]))
    expected = interpolate(whole[None], (32, 32), mode="bicubic", antialias=True)[0]
    assert torch.equal(sample.background, expected)


def test_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    photos = make_photos(1)
    photos[0].fields["jpg"] = b"no image"
    shard = write_original(tmp_path / "a.tar", photos)
    with pytest.raises(ContentError, match=rf"{photos[0].key}: not an image"):
        list(PrunedDataset(shard.url, select=brightest))
