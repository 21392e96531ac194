"""The demo: photographs found and packed, scored on real actors, drawn, and drawn again without scoring."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchrank.jobs import demo
from patchrank.pipeline import demo_sheet
from patchrank.pipeline.config import IMAGE_FIELDS
from patchrank.pipeline.demo_photos import (
    SCIKIT_IMAGE_PHOTOS,
    SHARDS,
    PackedPhotos,
    cut_boxes,
    find_photos,
    pack_photos,
    shrink,
    spread,
)
from patchrank.pipeline.errors import UserError
from patchrank.pipeline.images import decode_image
from patchrank.pipeline.shard_writer import ShardWriter
from patchrank.pipeline.shards import Sample, ShardReader, expand_shards, pick_image
from patchrank.pipeline.sheet_rows import read_samples, scored_photo
from patchrank.pipeline.table_reader import ScoreTables
from patchrank.pipeline.teacher.checkpoint import build_teacher, read_teacher
from tests.helpers.photos import encode, photo_pixels
from tests.helpers.score_runs import save_small_teacher, score_config, score_here


def write_photos(folder: Path, names: dict[str, bytes]) -> Path:
    for name, data in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def samples_of(shards: object) -> dict[str, torch.Tensor]:
    """Decoded images by key, of shards as the score job reads them."""
    found = {}
    for shard in expand_shards(list(shards)):  # type: ignore[call-overload]
        with ShardReader(shard) as reader:
            for sample in reader:
                assert isinstance(sample, Sample)
                picked = pick_image(sample, IMAGE_FIELDS)
                assert picked is not None
                assert sample.key not in found
                found[sample.key] = decode_image(picked[1])
        assert not reader.damaged
    return found


def pack(folder: Path, out: Path, samples: int = 80) -> PackedPhotos:
    return pack_photos(find_photos(str(folder)), str(out), samples=samples, run_id="run")


def test_scikit_image_ships_the_photographs() -> None:
    found = find_photos(None)
    assert tuple(name for name, _ in found) == SCIKIT_IMAGE_PHOTOS
    for name, path in found:
        photo = decode_image(path.read_bytes()).float()
        assert min(photo.shape[1:]) >= 224, name
        # Colour: the channels differ.
        assert (photo[0] - photo[2]).abs().mean() > 1, name


def test_without_scikit_image_one_line_says_what_to_do(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        demo.main(["--out", str(tmp_path)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pip install 'patchrank[demo]'" in told
    assert "--images DIR" in told


def test_a_scikit_image_without_its_pictures_is_told(monkeypatch, tmp_path) -> None:
    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
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
        "trip/one.webp",
        "trip/deep/two.tif",
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
    assert lines[0].startswith("packed 1 photos as 4 samples")
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
    assert stems == ["a-whole", "a~2-whole", "a~2~2-whole", "b-a-whole", "\ufffd-whole", "b-a~2-whole"]
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


def test_rows_of_the_sheet_come_from_the_table_alone(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.png": encode(photo_pixels(5, 90, 120), "PNG")})
    packed = pack(folder, tmp_path / "shards", samples=4)
    teacher = save_small_teacher(tmp_path)
    config = score_config(
        packed.shards, tmp_path / "labels", teacher, crop="center", masks="spread", views="12"
    )
    score_here(config)
    tables = ScoreTables(str(tmp_path / "labels"))
    samples = read_samples(tables, [part.sample_key for part in packed.photos[0].parts] + ["not there"])
    assert list(samples) == [part.sample_key for part in packed.photos[0].parts]
    whole = samples["a-whole"]
    assert whole.known.all()
    assert sorted(whole.visible.reshape(-1).tolist()) == list(range(36))
    row = scored_photo(packed.photos[0], samples, build_teacher(read_teacher(teacher)))
    assert "48 views of 4 overlapping crops" in row.caption
    assert not np.isnan(row.scores).any()
    box = whole.box
    image = samples_of(packed.shards)["a-whole"].permute(1, 2, 0).numpy()
    crop = Image.fromarray(image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]])
    expected = np.asarray(crop.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(row.view - expected).mean() < 2


def test_tables_of_random_crops_make_no_map(tmp_path) -> None:
    folder = write_photos(tmp_path / "photos", {"a.png": encode(photo_pixels(5, 90, 120), "PNG")})
    packed = pack(folder, tmp_path / "shards", samples=4)
    score_here(score_config(packed.shards, tmp_path / "labels", save_small_teacher(tmp_path), crop="random"))
    with pytest.raises(UserError, match="different crops"):
        read_samples(ScoreTables(str(tmp_path / "labels")), ["a-whole"])


def test_a_teacher_that_does_not_tell_what_it_predicts_is_refused(tmp_path) -> None:
    teacher = read_teacher(save_small_teacher(tmp_path, output_space="unknown"))
    with pytest.raises(UserError, match="cannot be drawn"):
        demo_sheet.check_teacher(teacher)


def test_too_few_samples_are_refused(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(["--samples", "3"])
    assert ended.value.code == 2
    assert "--samples is 3" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_from_photos_to_picture_and_again(tmp_path, capsys) -> None:
    photos = {
        "one.jpg": encode(photo_pixels(1)),
        "sub/two.png": encode(photo_pixels(2), "PNG"),
        "bad.jpg": b"x",
    }
    folder, out = write_photos(tmp_path / "photos", photos), tmp_path / "out"
    arguments = ["--images", str(folder), "--out", str(out), "--samples", "12", "--views", "4"]
    # A process of its own, as a user starts it: with a Ray of its own.
    ended = subprocess.run(
        [sys.executable, "-m", "patchrank.jobs.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "packed 2 photos as 8 samples" in ended.stdout
    assert "cannot read bad.jpg" in ended.stdout
    assert "complete: 4 of 4 shards done, 32 rows" in ended.stdout
    assert re.search(rf"^  \S+ status {out}/labels$", ended.stdout, re.MULTILINE)
    picture = (out / "contact-sheet.png").read_bytes()
    with Image.open(out / "contact-sheet.png") as image:
        assert image.width > 5 * 224
        assert image.height > 2 * 224
    rows = ScoreTables(str(out / "labels")).rows
    assert rows == 32

    (out / "contact-sheet.png").unlink()
    with pytest.raises(SystemExit) as again:
        demo.main(arguments)
    assert again.value.code == 0
    assert "4 of 4 shards done (4 by earlier runs)" in capsys.readouterr().out
    assert (out / "contact-sheet.png").read_bytes() == picture
