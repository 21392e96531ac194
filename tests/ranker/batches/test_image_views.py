"""Views made again from their shards: the pixels that the teacher saw, whatever the shards look like."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchsieve.pipeline import storage
from patchsieve.pipeline.errors import InfrastructureError, UserError
from patchsieve.pipeline.shards.specs import expand_shards
from patchsieve.pipeline.tables.reader import ScoreTables
from patchsieve.ranker.batches.batch import Batch
from patchsieve.ranker.batches.image_shards import ShardImages
from patchsieve.ranker.batches.index import Context, TableIndex, index_tables
from patchsieve.ranker.batches.rows import held_out_batches
from patchsieve.ranker.batches.stream import TableBatches
from tests.helpers.archives import apart, archive, member, pax
from tests.helpers.photos import encode, photo, photo_pixels
from tests.helpers.score_runs import rows_of, save_small_teacher, score_config, score_here
from tests.helpers.servers import serve_files

VISIBLE = 3
IMAGES = 14


def exif(orientation: int) -> Image.Exif:
    told = Image.Exif()
    told[0x0112] = orientation
    return told


def photos_archive(seed: int) -> bytes:
    """Turned and plain photos of many formats, with other fields, folders, long names and bad samples between."""
    parts = [member("dir/", kind=b"5")]
    for number in range(IMAGES):
        key = f"dir/{seed}-{number:03d}" + "-long" * (30 * (number == 3))
        pixels = photo_pixels(100 * seed + number, 60 + number, 80)
        data = encode(pixels, exif=exif(number % 8 + 1))
        field = "jpg"
        if number % 5 == 4:
            data, field = encode(pixels, "PNG"), "PNG"
        if number == 3:
            parts.append(pax({"path": f"{key}.{field}"}))
        if number == 9:
            # What macOS writes beside a file, in the middle of a sample, and first and last in a slice.
            parts += [member(f"{key}.cls", b"1"), member(f"dir/._{seed}-009.jpg", b"resource fork")]
        parts.append(member(f"{key[:90]}.{field}", data))
        if number != 3:
            parts.append(member(f"{key}.txt", b"words" * number))
        if number % 4 == 0:
            # After its image, so that the image above counts: no image field is first otherwise.
            parts.append(member(f"{key}.webp", b"another image field"))
        if number == 6:
            parts += [member("dir/link.jpg", kind=b"2"), member("dir/broken.jpg", b"no image")]
            parts.append(member(f"dir/{seed}-000.jpg", photo(7, 50, 50)))  # a key seen before
    return b"".join(parts) + bytes(1024)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, scored with every kind of store and with two runs of views."""
    root = tmp_path_factory.mktemp("world")
    teacher = save_small_teacher(root)
    (root / "shards").mkdir()
    for seed in (1, 2):
        (root / f"shards/part-{seed}.tar").write_bytes(photos_archive(seed))
    for out, store, views in (("patches", "patches", "2"), ("none", "none", "2"), ("more", "patches", "2:4")):
        score_here(score_config([root / "shards"], root / out, teacher, store=store, views=views))
    rooted = dataclasses.replace(
        score_config([root / "shards"], root / "rooted", teacher, store="none"), root=str(root / "shards")
    )
    score_here(rooted)
    return root


def index_of(
    world: Path, *outs: str, context: Context = "full", shards: str = "shards", **options
) -> TableIndex:
    found = expand_shards([str(world / shards)], root=options.pop("root", None))
    tables = ScoreTables([str(world / out) for out in outs])
    return index_tables(tables, context=context, shards=found, **{"slice_bytes": 6000, **options})


def read(index: TableIndex, **options) -> list[Batch]:
    given = {"batch_size": 4, "seed": 0, "decode_threads": 2, "window_bytes": 15_000}
    with TableBatches(index, **{**given, **options}).stream(epochs=1) as stream:
        return list(stream)


def stored_patches(world: Path, out: str) -> dict[tuple[str, int], torch.Tensor]:
    """By (key, view): the visible pixels that scoring stored."""
    return {
        (key, view): torch.from_numpy(np.frombuffer(row["patches"], np.uint8).reshape(VISIBLE, -1).copy())
        for (_, key, view), row in rows_of(world / out).items()
    }


@pytest.mark.parametrize("outs", [("patches",), ("patches", "more")])
def test_whole_views_show_at_visible_places_what_the_teacher_saw(world: Path, outs: tuple[str, ...]) -> None:
    index: TableIndex = pickle.loads(pickle.dumps(index_of(world, *outs)))
    assert len(index.rows_of) > 4 * len(index.files)
    expected = {pair: patches for out in outs for pair, patches in stored_patches(world, out).items()}
    assert {row["hflip"] for row in rows_of(world / "patches").values()} == {False, True}
    batches = read(index)
    seen = set()
    for batch in batches:
        assert batch.patches.shape == (4, 36, 192)
        for i, pair in enumerate(zip(batch.sample_keys, batch.views, strict=True)):
            seen.add(pair)
            assert torch.equal(batch.patches[i, batch.positions[i]], expected[pair])
    assert len(seen) == 4 * len(batches) == len(expected) // 4 * 4


def test_tables_without_pixels_train_on_visible_patches_too(world: Path) -> None:
    expected = stored_patches(world, "patches")
    for batch in read(index_of(world, "none", context="visible")):
        for i, pair in enumerate(zip(batch.sample_keys, batch.views, strict=True)):
            assert torch.equal(batch.patches[i], expected[pair])


def test_unsorted_shards_are_replayed_where_it_is_said_that_they_are(world: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for seed in (1, 2):
        apart(world / f"shards/part-{seed}.tar", tmp_path / f"shards/part-{seed}.tar")
    teacher = str(next(world.glob("*.safetensors")))
    for store in ("patches", "none"):
        config = score_config(
            [tmp_path / "shards"], tmp_path / store, teacher, unsorted=True, store=store, root=str(tmp_path)
        )
        score_here(config)
    expected = stored_patches(tmp_path, "patches")
    assert len(expected) == 2 * 2 * IMAGES
    batches = read(index_of(tmp_path, "none", context="visible", unsorted=True, root=str(tmp_path)))
    for batch in batches:
        for i, pair in enumerate(zip(batch.sample_keys, batch.views, strict=True)):
            assert torch.equal(batch.patches[i], expected[pair])
    assert 4 * len(batches) == len(expected)
    with pytest.raises(UserError, match="--unsorted needs that here too"):
        read(index_of(tmp_path, "none", context="visible", root=str(tmp_path)))


def test_held_out_images_are_replayed_apart(world: Path) -> None:
    index = index_of(world, "none", held_out_share=0.3)
    keys = {
        key
        for number in range(len(index.held_out_rows))
        for batch in held_out_batches(index, number, batch_size=4, decode_threads=2)
        for key in batch.sample_keys
    }
    assert 2 * len(keys) == index.held_out_rows.sum() > 0
    assert not keys & {key for batch in read(index) for key in batch.sample_keys}


def test_a_corpus_may_move_where_names_are_below_a_root(world: Path, tmp_path: Path) -> None:
    shutil.copytree(
        world / "shards", tmp_path / "moved", copy_function=shutil.copy
    )  # other times: the tags differ, contents do not
    moved = expand_shards([str(tmp_path / "moved")], root=str(tmp_path / "moved"))
    index = index_tables(ScoreTables(str(world / "rooted")), context="full", shards=moved)
    assert not any(index.images.shard(number).same_tag for number in range(len(index.rows_of)))
    assert len(read(index)) == IMAGES
    with pytest.raises(
        UserError, match=r"--images lacks the shard part-1\.tar and 1 more .*given: /.*--root"
    ):
        index_of(world, "rooted")


def test_shards_are_read_over_http_in_stretches(world: Path) -> None:
    with serve_files() as server:
        for seed in (1, 2):
            server.files[f"/part-{seed}.tar"] = (world / f"shards/part-{seed}.tar").read_bytes()
        served = expand_shards([server.url("/part-{1..2}.tar")], root=server.url("/"))
        index = index_tables(
            ScoreTables(str(world / "rooted")), context="full", shards=served, slice_bytes=6000
        )
        whole = read(index, window_bytes=1)
        asked = [wanted for method, _, wanted in server.asked if method == "GET"]
    # Each shard once as a whole, to find the samples and to hash it; then each slice in one request.
    assert len(asked) == 2 + len(index.rows_of)
    local = read(index_of(world, "patches"), window_bytes=1)
    assert [batch.sample_keys for batch in whole] == [batch.sample_keys for batch in local]
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(whole, local, strict=True))


def test_a_slice_is_what_its_images_take(world: Path) -> None:
    index = index_of(world, "none")
    assert index.sizes.max() <= 6000
    assert index.rows_of.sum() == 2 * 2 * IMAGES
    assert (index.rows_of % 2 == 0).all()  # both views of an image lie together
    one = index_of(world, "none", slice_bytes=10**6)
    assert len(one.rows_of) == 2


def test_requests_that_cannot_work_are_refused(world: Path) -> None:
    with pytest.raises(UserError, match="leave --images out"):
        index_of(world, "patches", context="visible")
    with pytest.raises(UserError, match=r"context full needs a table of score --store view.*\(--images\)"):
        index_tables(ScoreTables(str(world / "patches")), context="full")


def broken(world: Path, tmp_path: Path, change) -> TableIndex:
    """An index of a copy of shards and tables, the first shard changed after planning."""
    shutil.copytree(world / "shards", tmp_path / "shards", copy_function=shutil.copy)
    index = index_tables(
        ScoreTables(str(world / "rooted")),
        context="full",
        shards=expand_shards([str(tmp_path / "shards")], root=str(tmp_path / "shards")),
    )
    change(tmp_path / "shards/part-1.tar")
    return index


def other_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_bytes, r"part-1\.tar is not the shard that was scored: its SHA-256"),
        (
            lambda path: path.write_bytes(archive([("a.jpg", b"x")])),
            r"part-1\.tar is not .*: it has 2048 bytes",
        ),
        (lambda path: path.unlink(), r"part-1\.tar is gone"),
    ],
)
def test_another_shard_than_the_scored_one_is_named(world: Path, tmp_path: Path, change, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(broken(world, tmp_path, change))


def test_another_size_is_noticed_when_training_is_planned(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "shards", tmp_path / "shards", copy_function=shutil.copy)
    with (tmp_path / "shards/part-2.tar").open("ab") as file:
        file.write(bytes(512))
    shards = expand_shards([str(tmp_path / "shards")], root=str(tmp_path / "shards"))
    with pytest.raises(
        UserError, match=r"part-2\.tar has \d+ bytes, the shard that .*parquet was scored from"
    ):
        index_tables(ScoreTables(str(world / "rooted")), context="full", shards=shards)


def test_a_shard_that_passes_for_the_scored_one_is_still_checked(world: Path, tmp_path: Path) -> None:
    """Same size and tag, so that nothing is hashed: what is read must fit the rows."""
    shutil.copytree(world / "shards", tmp_path / "shards", copy_function=shutil.copy2)
    path = tmp_path / "shards/part-1.tar"
    shards = expand_shards([str(tmp_path / "shards")], root=str(tmp_path / "shards"))

    def replayed(old: bytes, new: bytes) -> list[Batch]:
        data = (world / "shards/part-1.tar").read_bytes()
        assert old in data
        assert len(old) == len(new)
        path.write_bytes(data.replace(old, new))
        index = index_tables(ScoreTables(str(world / "rooted")), context="full", shards=shards)
        trusted = {
            number: dataclasses.replace(index.images.shard(number), same_tag=True)
            for number in range(len(index.rows_of))
        }
        images = ShardImages(trusted, index.images._keys_of)
        return read(dataclasses.replace(index, images=images))

    assert replayed(b"words", b"Words")  # another field is nobody's business here
    # The checksum of a header holds when two of its bytes change places.
    with pytest.raises(UserError, match=r"part-1\.tar is not the shard that was scored: it lacks images"):
        replayed(b"dir/1-013.", b"dir/1-031.")
    with pytest.raises(UserError, match=r"part-1\.tar is not .*: it has no image of dir/1-012"):
        replayed(b"dir/1-012.", b"dir/1-021.")
    start = photo_pixels(102, 62, 80)
    jpeg = encode(start, exif=exif(3))
    with pytest.raises(UserError, match=r"part-1\.tar is not .*, or is damaged: the image of dir/1-002: "):
        replayed(jpeg, bytes(len(jpeg)))
    smaller = encode(photo_pixels(1, 20, 20))
    with pytest.raises(UserError, match="20 x 20 pixels instead of 80 x 62"):
        replayed(jpeg, smaller + bytes(len(jpeg) - len(smaller)))


def test_a_shard_that_changes_between_readings_is_noticed(world: Path, tmp_path: Path) -> None:
    index = broken(world, tmp_path, lambda path: None)
    keys = {batch.sample_keys[0] for batch in read(index)}
    path = tmp_path / "shards/part-1.tar"
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert keys
    with pytest.raises(InfrastructureError, match=r"part-1\.tar changed since"):
        read(index)


def test_only_headers_of_a_local_shard_are_fetched(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    def counted(url: str, start: int, stop: int) -> bytes:
        fetched.append(stop - start)
        return read_range(url, start, stop)

    read_range = storage.read_range
    index = index_of(world, "none")
    monkeypatch.setattr(storage, "read_range", counted)
    images = index.images
    for number in range(len(index.rows_of)):
        images._located(images.shard(number))
    size = sum((world / f"shards/part-{seed}.tar").stat().st_size for seed in (1, 2))
    assert max(fetched) <= 4096
    assert sum(fetched) < 4096 * 3 * 2 * (IMAGES + 5)
    assert size > 0
