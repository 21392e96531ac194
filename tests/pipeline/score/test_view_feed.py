"""From a shard to views: in shard order, ahead of the consumer but not far, faults told, errors raised."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from patchsieve.pipeline.errors import InfrastructureError
from patchsieve.pipeline.images.decode import decode_image
from patchsieve.pipeline.images.patches import patchify
from patchsieve.pipeline.images.views import decode_view
from patchsieve.pipeline.score.view_feed import ViewFeed, in_share, prepare_views, views_here
from patchsieve.pipeline.scoring.views import View, draw_views
from patchsieve.pipeline.shards.reader import Fault, Sample
from patchsieve.pipeline.shards.specs import Shard, expand_shards
from tests.helpers.photos import photo, photo_samples, write_shard
from tests.helpers.tables import CONFIG

# A grid of 6 x 6 patches, of which int(36 * 0.15) = 5 are visible: eight views show all, the last one filled up.
ROWS = dataclasses.replace(CONFIG, size=48, mask_ratio=0.85, views=2, image_field="jpg;png")
PATCH = 8
GROUPS = 8


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def shard_at(path: Path) -> Shard:
    return expand_shards([str(path)])[0]


def feed_of(path: Path, pool: ThreadPoolExecutor, *, ahead: int = 4, rows: Any = ROWS) -> ViewFeed:
    return ViewFeed(shard_at(path), rows, views_here(rows, PATCH), pool, ahead)


def keys_of(items: list[list[View] | Fault]) -> list[str | None]:
    return [item.sample_key if isinstance(item, Fault) else item[0].sample_key for item in items]


def test_views_come_in_shard_order_with_what_was_read(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    # Large pictures first: the small ones behind them are decoded sooner.
    sizes = [700, 600, 500, 60, 50, 40]
    samples = [(f"s{i}", {"jpg": photo(i, side, side), "cls": b"1"}) for i, side in enumerate(sizes)]
    path = write_shard(tmp_path / "a.tar", samples)
    feed = feed_of(path, pool)
    positions, items = [], []
    for item in feed:
        items.append(item)
        positions.append(feed.position)
    feed.close()
    assert keys_of(items) == [key for key, _ in samples]
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    # A sample ends where the header of the next one was read, by the standard library's offsets.
    assert positions[:-1] == [member.offset_data for member in members[2::2]]
    assert (feed.samples, feed.size) == (len(sizes), path.stat().st_size)
    assert feed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not feed.damaged


def test_no_more_than_ahead_in_memory(tmp_path: Path) -> None:
    ahead, count = 3, 12
    submitted: list[str] = []
    full = threading.Event()

    class Counting(ThreadPoolExecutor):
        def submit(self, call: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
            submitted.append(args[0].key)
            if len(submitted) == ahead:
                full.set()
            return super().submit(call, *args, **options)

    path = write_shard(tmp_path / "a.tar", photo_samples(count, height=50, width=50))
    with Counting(1) as pool:
        feed = feed_of(path, pool, ahead=ahead)
        assert full.wait(60), "it reads ahead of a consumer that has not begun"
        for taken, _ in enumerate(feed):
            assert len(submitted) <= taken + 1 + ahead, "the one in use and those that wait"
        feed.close()
    assert len(submitted) == count


def test_a_feed_that_is_left_early_stops(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = write_shard(tmp_path / "a.tar", photo_samples(30, height=50, width=50))
    before = set(threading.enumerate())
    feed = feed_of(path, pool, ahead=2)
    next(iter(feed))
    feed.close()
    feed.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("read ")]
    assert feed.sha256 == ""


def test_a_fault_of_storage_is_raised_after_what_was_read(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = write_shard(tmp_path / "a.tar", photo_samples(3, height=50, width=50))
    shard = shard_at(path)
    path.unlink()
    feed = ViewFeed(shard, ROWS, views_here(ROWS, PATCH), pool, 4)
    with pytest.raises(InfrastructureError, match="not there any more"):
        list(feed)
    feed.close()


def test_faults_stay_in_place(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    good = photo(1, 50, 60)
    samples = [
        ("good", {"jpg": good}),
        ("cut", {"jpg": good[:200]}),
        ("bare", {"cls": b"7", "txt": b"no image"}),
        ("good", {"jpg": good}),
        ("last", {"PNG": good}),
    ]
    items = list(feed_of(write_shard(tmp_path / "a.tar", samples), pool))
    assert keys_of(items) == ["good", "cut", "bare", "good", "last"]
    faults = [item for item in items if isinstance(item, Fault)]
    assert [(fault.member, fault.stage) for fault in faults] == [
        ("cut.jpg", "decode"),
        (None, "sample"),
        ("good.jpg", "sample"),
    ]
    assert "cls, txt" in faults[1].reason
    assert "duplicate key" in faults[2].reason


def test_an_image_member_that_is_no_file_is_a_fault(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    data = photo(1, 50, 60)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("linked.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        good = tarfile.TarInfo("good.jpg")
        good.size = len(data)
        archive.addfile(good, io.BytesIO(data))
    fault, views = list(feed_of(path, pool))
    assert isinstance(fault, Fault)
    assert (fault.sample_key, fault.stage) == ("linked", "sample")
    assert "linked.jpg" in fault.reason
    assert isinstance(views, list)


def test_a_sample_without_the_share_is_passed_over_but_counted(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    samples = photo_samples(20, height=50, width=50)
    # A bad sample counts where its key is of the share, and is passed over like a good one where it is not.
    path = write_shard(tmp_path / "a.tar", samples + samples)
    rows = dataclasses.replace(ROWS, sample=0.3)
    feed = feed_of(path, pool, rows=rows)
    items = list(feed)
    expected = [key for key, _ in samples if in_share(key, rows)]
    assert keys_of(items) == expected + expected
    assert [isinstance(item, Fault) for item in items] == [False] * len(expected) + [True] * len(expected)
    assert 0 < len(expected) < 20
    assert feed.samples == 40


def test_the_share_is_fixed_and_grows_by_adding() -> None:
    keys = [f"folder/key-{number}" for number in range(2000)]
    taken = {
        share: {key for key in keys if in_share(key, dataclasses.replace(ROWS, sample=share))}
        for share in (0.02, 0.3, 1.0)
    }
    assert taken[0.02] < taken[0.3] < taken[1.0] == set(keys)
    # Binomial: three standard deviations are 19 of 40 and 61 of 600.
    assert abs(len(taken[0.02]) - 40) < 19
    assert abs(len(taken[0.3]) - 600) < 61
    other = {key for key in keys if in_share(key, dataclasses.replace(ROWS, sample=0.3, seed=1))}
    assert other != taken[0.3]
    # Nothing else in the settings moves the share: tables of other views or masks cover the same samples.
    moved = dataclasses.replace(ROWS, sample=0.3, first_view=4, masks="spread", crop="center", store="view")
    assert {key for key in keys if in_share(key, moved)} == taken[0.3]


@pytest.mark.parametrize("masks", ["uniform", "spread"])
def test_views_of_one_crop_cover_every_patch(masks: Any) -> None:
    rows = dataclasses.replace(ROWS, crop="center", masks=masks, views=2 * GROUPS)
    views = draw_views("key", decode_image(photo(3, 90, 70)), rows, PATCH)
    first, second = views[:GROUPS], views[GROUPS:]
    for partition in (first, second):
        assert {int(place) for view in partition for place in view.visible} == set(range(36))
        # 36 patches fill seven groups of five and one place of the eighth: four are shown twice.
        assert sum(len(view.visible) for view in partition) == 40
    assert any((one.visible != other.visible).any() for one, other in zip(first, second, strict=True))
    assert len({view.box for view in views}) == 1
    assert all(view.pixels.shape == (5, PATCH * PATCH * 3) for view in views), "no more than what is seen"
    whole = draw_views("key", decode_image(photo(3, 90, 70)), dataclasses.replace(rows, metric="ssim"), PATCH)
    assert all(view.pixels is whole[0].pixels for view in whole), "one crop is held in memory once"
    for view, other in zip(views, whole, strict=True):
        assert (view.pixels == other.pixels[view.visible]).all()


def test_views_of_random_crops_differ() -> None:
    image = decode_image(photo(3, 90, 70))
    views = draw_views("key", image, dataclasses.replace(ROWS, views=8), PATCH)
    assert len({view.box for view in views}) == 8
    assert len({view.visible.tobytes() for view in views}) > 1
    assert [view.view for view in views] == list(range(8))
    later = draw_views("key", image, dataclasses.replace(ROWS, first_view=4, views=4), PATCH)
    for one, other in zip(later, views[4:], strict=True):
        assert (one.view, one.box) == (other.view, other.box)
        assert (one.visible == other.visible).all()
        assert (one.pixels == other.pixels).all()


def test_the_teacher_sees_what_is_stored() -> None:
    rows = dataclasses.replace(ROWS, store="view")
    for view in draw_views("key", decode_image(photo(3, 90, 70)), rows, PATCH):
        assert view.jpeg is not None
        assert (view.pixels == patchify(decode_view(view.jpeg)[None], PATCH)[0].numpy()[view.visible]).all()


def test_a_sample_is_prepared_from_its_first_image_field() -> None:
    wide, high = photo(1, 40, 80), photo(2, 80, 40)
    sample = Sample("k", {"png": wide, "jpg": high}, {"png": "k.png", "jpg": "k.jpg"})
    for fields, size in (("jpg;png", (80, 40)), ("png;jpg", (40, 80)), ("webp;png", (40, 80))):
        views = prepare_views(sample, fields, views_here(ROWS, PATCH))
        assert isinstance(views, list)
        assert views[0].image_size == size
    fault = prepare_views(sample, "tif", views_here(ROWS, PATCH))
    assert isinstance(fault, Fault)
    assert "png, jpg" in fault.reason


def test_fields_that_are_no_images_are_not_kept(tmp_path: Path) -> None:
    samples = [(key, {"jpg": data["jpg"], "npy": b"x" * 4096}) for key, data in photo_samples(3)]
    path = write_shard(tmp_path / "a.tar", samples)
    with ThreadPoolExecutor(1) as pool:
        feed = ViewFeed(expand_shards([str(path)])[0], ROWS, views_here(ROWS, PATCH), pool, 8)
        assert len([item for item in feed if isinstance(item, list)]) == 3
        feed.close()
    assert 3 * 4096 < feed.position <= path.stat().st_size
