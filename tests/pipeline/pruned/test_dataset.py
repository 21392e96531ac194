"""Reading packed shards: every sample once and whole, in loaders and pipelines; what is damaged is told."""

from __future__ import annotations

import json
import tarfile
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

import patchsieve
from patchsieve.pipeline.errors import ContentError, UserError
from patchsieve.pipeline.pruned.collate import collate_fixed, collate_naflex
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.sample import PrunedSample
from tests.helpers.archives import member
from tests.pipeline.pruned.pruned_shards import Photo, make_photos, packed_members, write_packed

# On a machine with one core, two workers are still what is tested.
pytestmark = [pytest.mark.forks, pytest.mark.filterwarnings("ignore:This DataLoader will create")]


def shards(folder: Path, count: int = 3, **options: Any) -> dict[str, Photo]:
    """`count` packed shards of three photos each; the photos by key."""
    found: dict[str, Photo] = {}
    for number in range(count):
        photos = make_photos(3, number, **options)
        write_packed(folder / f"p-{number:03d}.tar", photos)
        found |= {photo.key: photo for photo in photos}
    return found


def read(folder: Path, **options: Any) -> list[PrunedSample]:
    return list(PrunedDataset(str(folder), **options))


def key_of(sample: PrunedSample) -> str:
    return sample.key


def keys_of(samples: list[PrunedSample]) -> list[str]:
    return [sample.key for sample in samples]


@pytest.mark.parametrize(("codec", "block"), [("png", 16), ("png", 32), ("jpeg", 16)])
def test_samples_come_as_they_were_packed(tmp_path: Path, codec: str, block: int) -> None:
    photos = shards(tmp_path, codec=codec, block=block)
    found = read(tmp_path)
    assert keys_of(found) == list(photos)
    for sample in found:
        photo = photos[sample.key]
        assert (sample.grid, sample.block, sample.crop) == (4, block, photo.record.crop)
        assert sample.original_size == photo.record.original_size
        assert sample.positions.tolist() == list(photo.record.positions)
        assert sample.fields == {"cls": photo.fields["cls"]}
        keep = (
            torch.from_numpy(photo.keep).reshape(4, 4).repeat_interleave(block, 0).repeat_interleave(block, 1)
        )
        image = sample.to_image(0)
        assert not image[:, ~keep].any()
        exact = torch.equal(image[:, keep], photo.crop_pixels[:, keep])
        near = (image[:, keep].int() - photo.crop_pixels[:, keep].int()).abs().float().mean() < 10
        assert exact if codec == "png" else near


def test_with_all_patches_kept_the_image_is_the_crop(tmp_path: Path) -> None:
    photos = shards(tmp_path, keep=16)
    for sample in read(tmp_path):
        assert torch.equal(sample.to_image(), photos[sample.key].crop_pixels)


@pytest.mark.parametrize(("count", "workers"), [(3, 1), (3, 2), (1, 2)])
def test_each_sample_comes_once_from_workers(tmp_path: Path, count: int, workers: int) -> None:
    photos = shards(tmp_path, count)
    loader = DataLoader(PrunedDataset(str(tmp_path)), 2, num_workers=workers, collate_fn=keys_of)
    for _ in range(2):
        assert sorted(key for batch in loader for key in batch) == sorted(photos)


def test_batches_for_models_come_from_workers(tmp_path: Path) -> None:
    shards(tmp_path)
    dataset = PrunedDataset(str(tmp_path))
    expected = collate_naflex(list(dataset)[:3])
    loader = DataLoader(dataset, 3, num_workers=1, collate_fn=collate_naflex)
    first = next(iter(loader))
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    assert collate_fixed(list(dataset))["patches"].shape == (9, 8, 768)


def test_each_sample_comes_once_on_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = shards(tmp_path, 5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        loader = DataLoader(PrunedDataset(str(tmp_path)), None, num_workers=2, collate_fn=key_of)
        found += list(loader)
    assert sorted(found) == sorted(photos)


def test_more_ranks_than_shards_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="1 shard for 2 ranks"):
        read(tmp_path)


def test_epochs_have_orders_of_their_own(tmp_path: Path) -> None:
    photos = shards(tmp_path, 4)
    dataset = PrunedDataset(str(tmp_path), shuffle_shards=True, seed=1)
    loader = DataLoader(dataset, None, num_workers=1, collate_fn=key_of, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 2, 0):
        dataset.set_epoch(epoch)
        orders.append(list(loader))
        assert orders[-1] == keys_of(list(dataset))
    assert all(sorted(order) == sorted(photos) for order in orders)
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) > 1


def test_it_begins_a_webdataset_pipeline(tmp_path: Path) -> None:
    photos = shards(tmp_path)
    dataset = PrunedDataset(str(tmp_path))
    assert list(dataset.map(key_of)) == list(photos)
    batches = list(dataset.shuffle(100, seed=3).map(key_of).batched(4, collation_fn=list))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert sorted(chain(*batches)) == sorted(photos)
    assert list(chain(*batches)) != list(photos)
    assert [len(keys) for keys in dataset.batched(2, keys_of, partial=False)] == [2] * 4
    staged = webdataset.DataPipeline(
        dataset, webdataset.map(key_of), webdataset.batched(9, collation_fn=list)
    )
    assert list(staged) == [list(photos)]
    loader = DataLoader(dataset.shuffle(10).batched(3, collation_fn=keys_of), None, num_workers=2)
    assert sorted(chain(*loader)) == sorted(photos)


def test_fields_are_decoded(tmp_path: Path) -> None:
    photos = shards(tmp_path, 1)
    found = read(tmp_path, decoders={"cls": int, "json": json.loads})
    assert [sample.fields["cls"] for sample in found] == [
        int(photo.fields["cls"]) for photo in photos.values()
    ]
    with pytest.raises(ContentError, match=r"photo-0-0000: field cls cannot be decoded: .*JSON"):
        read(tmp_path, decoders={"cls": lambda data: json.loads(b"JSON")})


def bad_members(photos: list[Photo]) -> dict[str, tuple[dict[str, bytes], str]]:
    """Samples by key that cannot be read: their fields, and why."""
    good, other = packed_members(photos[0]), packed_members(make_photos(1, 1, keep=9)[0])
    return {
        "no-record": (
            {"jpg": b"x", "cls": b"1"},
            "it has no patches.json: shards that were never pruned take select=",
        ),
        "no-mosaic": ({"patches.json": good["patches.json"]}, "it has no patches.png"),
        "odd-record": ({**good, "patches.json": b"[]"}, "patches.json: must be an object"),
        "other-size": (
            {**good, "patches.png": other["patches.png"]},
            "16 x 144 pixels where its record says 16 x 128",
        ),
        "cut-mosaic": ({**good, "patches.png": good["patches.png"][:200]}, "png|truncated|broken"),
    }


def test_samples_that_cannot_be_read_go_to_the_handler(tmp_path: Path) -> None:
    photos = make_photos(2)
    bad = bad_members(photos)
    more = {f"{key}.{field}": data for key, (fields, _) in bad.items() for field, data in fields.items()}
    write_packed(tmp_path / "a.tar", photos, more)
    write_packed(tmp_path / "b.tar", make_photos(1, 2))
    told: list[str] = []

    def note(error: Exception) -> bool:
        told.append(str(error))
        return True

    assert len(read(tmp_path, handler=note)) == 3
    for message, (key, (_, reason)) in zip(told, bad.items(), strict=True):
        assert message.startswith(f"{tmp_path}/a.tar: {key}: ")
        assert any(part in message for part in reason.split("|"))
    assert len(read(tmp_path, handler=lambda error: False)) == 2
    with pytest.raises(ContentError, match="no-record"):
        read(tmp_path)
    assert len(read(tmp_path, handler=webdataset.handlers.ignore_and_continue)) == 3


def test_shards_cut_short_are_told(tmp_path: Path) -> None:
    """By itself, webdataset ends such a shard early, without a word."""
    whole = write_packed(tmp_path / "whole.tar", make_photos(3)).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        second = archive.getmembers()[4]
    (tmp_path / "whole.tar").write_bytes(whole[: second.offset_data + 10])
    with pytest.raises(ContentError, match=r"whole\.tar: .*breaks off"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        ("pipe:cat x.tar", "would run a command"),
        ("nothing/*.tar", "nothing matches"),
        ([], "no shards given"),
    ],
)
def test_shards_that_cannot_be(urls: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        PrunedDataset(urls)


def test_it_is_a_public_name() -> None:
    assert patchsieve.PrunedDataset is PrunedDataset


def test_members_of_no_sample_are_passed_over(tmp_path: Path) -> None:
    photos = make_photos(2)
    path = write_packed(tmp_path / "a.tar", photos)
    path.write_bytes(member("._a.jpg", b"of macOS") + path.read_bytes())
    assert [sample.key for sample in PrunedDataset(str(path))] == [photo.key for photo in photos]
