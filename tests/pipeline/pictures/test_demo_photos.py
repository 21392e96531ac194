"""The demo's photographs: found in scikit-image or in a folder, packed into shards as overlapping crops."""

from __future__ import annotations

import importlib.util
import os
import sys
import tarfile

import numpy as np
import pytest
import torch

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.pictures.demo_photos import (
    SCIKIT_IMAGE_PHOTOS,
    SHARDS,
    cut_boxes,
    find_photos,
    shrink,
    spread,
)
from patchsieve.pipeline.shards.writer import ShardWriter
from tests.helpers.demo_photos import pack, samples_of, write_photos
from tests.helpers.photos import encode, photo_pixels


def test_scikit_image_ships_the_photographs() -> None:
    found = find_photos(None)
    assert tuple(name for name, _ in found) == SCIKIT_IMAGE_PHOTOS
    for name, path in found:
        photo = decode_image(path.read_bytes()).float()
        assert min(photo.shape[1:]) >= 224, name
        # Colour: the channels differ.
        assert (photo[0] - photo[2]).abs().mean() > 1, name


def test_a_scikit_image_without_its_pictures_is_told(monkeypatch, tmp_path) -> None:
    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    # Another test may have imported the real one.
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"no photographs in .*skimage/data"):
        find_photos(None)


def test_photos_of_a_folder_are_found_below_it_but_not_in_hidden_places(tmp_path) -> None:
    names = [
        "b.JPG",
        "a.png",
        "trip/one.webp",
        "trip/deep/two.tif",
        ".trash/x.jpg",
        "trip/.x.jpg",
        "notes.txt",
    ]
    write_photos(tmp_path, dict.fromkeys(names, b"x"))
    assert [name for name, _ in find_photos(str(tmp_path))] == [
        "a.png",
        "b.JPG",
        "trip/deep/two.tif",
        "trip/one.webp",
    ]


def test_folders_without_photos_are_told(tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_photos(str(tmp_path / "nowhere"))
    write_photos(tmp_path, {"notes.txt": b"x", ".hidden/a.jpg": b"x"})
    with pytest.raises(UserError, match=r"no photos below it .*\.jpg"):
        find_photos(str(tmp_path))


def test_samples_are_the_crops_that_their_parts_say(tmp_path) -> None:
    pixels = photo_pixels(3, 300, 410)
    folder = write_photos(tmp_path / "photos", {"a.b.png": encode(pixels, "PNG"), "c.jpg": encode(pixels)})
    packed = pack(folder, tmp_path / "shards")
    assert [photo.name for photo in packed.photos] == ["a.b.png", "c.jpg"]
    assert [len(photo.parts) for photo in packed.photos] == [10, 10]
    assert [part.sample_key for part in packed.photos[0].parts[:3]] == ["a_b-whole", "a_b-crop1", "a_b-crop2"]
    samples = samples_of(packed.shards)
    assert len(samples) == 20
    for part in packed.photos[0].parts:
        image = samples[part.sample_key].permute(1, 2, 0).numpy().astype(int)
        height, width = image.shape[:2]
        assert (height, width) == ((300, 410) if part.sample_key.endswith("whole") else (210, 287))
        original = pixels[part.top : part.top + height, part.left : part.left + width]
        assert np.abs(image - original).mean() < 5  # what JPEG leaves
    covered = np.zeros((300, 410), dtype=bool)
    for part in packed.photos[0].parts[1:]:
        covered[part.top : part.top + 210, part.left : part.left + 287] = True
    assert covered.all()


def test_the_same_photos_make_the_same_shards(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.jpg": encode(photo_pixels(1))})
    for out in ("one", "two"):
        pack(folder, tmp_path / out)
    for number in range(SHARDS):
        name = f"photos-{number}.tar"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_unreadable_photos_are_named_and_the_others_packed(tmp_path) -> None:
    good = encode(photo_pixels(1, 40, 50))
    folder = write_photos(
        tmp_path / "photos",
        {"cut.jpg": good[: len(good) // 2], "empty.png": b"", "good.jpg": good, "text.jpg": b"not a photo"},
    )
    packed = pack(folder, tmp_path / "shards", samples=16)
    assert [photo.name for photo in packed.photos] == ["good.jpg"]
    lines = packed.lines()
    assert lines[0].startswith("packed 1 photo as 4 samples")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "cannot read cut.jpg",
        "cannot read empty.png",
        "cannot read text.jpg",
    ]
    # Every shard holds a sample, so that none of an earlier demo stays behind.
    for shard in packed.shards:
        with tarfile.open(shard) as archive:
            assert len(archive.getnames()) == 1


def test_no_readable_photo_is_told(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"empty.png": b"", "text.jpg": b"not a photo"})
    with pytest.raises(UserError, match=r"none of 2 photos can be read: empty\.png: empty file; text\.jpg: "):
        pack(folder, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_of_many_photos_evenly_spaced_ones_are_taken(tmp_path) -> None:
    data = encode(photo_pixels(1, 20, 20))
    folder = write_photos(tmp_path / "photos", {f"{number:02d}.jpg": data for number in range(12)})
    packed = pack(folder, tmp_path / "shards", samples=16)
    assert [photo.name for photo in packed.photos] == ["00.jpg", "03.jpg", "06.jpg", "09.jpg"]
    assert "took 4 of 12 photos" in packed.lines()[1]
    assert spread(range(5), 9) == range(5)


def test_names_that_collide_or_are_no_text_get_keys_of_their_own(tmp_path) -> None:
    data = encode(photo_pixels(1, 20, 20))
    photos = tmp_path / "photos"
    names = {"a.jpg": data, "a.png": data, "a~2.jpg": data, "b/a.jpg": data, "b-a.jpg": data}
    write_photos(photos, names)
    with open(os.fsencode(photos) + b"/\xff.jpg", "wb") as local_file:
        local_file.write(data)
    packed = pack(photos, tmp_path / "shards", samples=24)
    stems = [photo.parts[0].sample_key for photo in packed.photos]
    assert stems == ["a-whole", "a~2-whole", "a~2~2-whole", "b-a-whole", "b-a~2-whole", "\ufffd-whole"]
    assert len(samples_of(packed.shards)) == 24


def test_large_photos_are_shrunk_and_tiny_ones_cut_all_the_same() -> None:
    large = torch.from_numpy(photo_pixels(1, 1100, 800)).permute(2, 0, 1)
    assert shrink(large).shape == (3, 704, 512)
    assert shrink(large).dtype == torch.uint8
    small = large[:, :1, :3]
    assert shrink(small) is small
    for top, left, height, width in cut_boxes(1, 3, 9):
        assert height == 1
        assert 0 <= left < left + width <= 3
        assert top == 0


def test_shards_are_written_without_traces_and_only_with_keys_that_are_read_back(tmp_path) -> None:
    writer = ShardWriter(tmp_path / "local.tar")
    with writer:
        writer.add("folder.x/a", {"jpg": b"1", "cls": b"2"})
        for key in ("", "a.b"):
            with pytest.raises(ValueError, match="is empty or has a dot"):
                writer.add(key, {"jpg": b""})
        writer.commit(str(tmp_path / "deep" / "shard.tar"), run_id="run")
    assert writer.samples == 1
    with tarfile.open(tmp_path / "deep" / "shard.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["folder.x/a.jpg", "folder.x/a.cls"]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {
        (0, 0, "", 0o644)
    }
