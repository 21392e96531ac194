"""Pruned shards as other programs see them, and masks equal to the bundled ranker's outside of the job."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from patchsieve.pipeline.errors import UserError
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.ranker.model.api import rank_images
from patchsieve.ranker.model.checkpoint import load_ranker
from tests.helpers.crops import crop_samples
from tests.helpers.photos import write_shard
from tests.helpers.prune_runs import contents, index_of, members_of, prune_config, prune_here

IMAGES, PER_SHARD, KEPT = 12, 6, 98


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("in")
    samples = crop_samples(IMAGES)
    return [write_shard(folder / f"{n}.tar", samples[n * PER_SHARD :][:PER_SHARD]) for n in range(2)]


@pytest.fixture(scope="module")
def outputs(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Output folders by format, of the bundled ranker; inputs must be what they were."""
    before = [path.read_bytes() for path in shards]
    made = {}
    for form in ("packed", "masked"):
        made[form] = tmp_path_factory.mktemp(form)
        config = prune_config(shards, made[form], "tiny", format=form, batch_size=4)
        results = prune_here(config).values()
        assert [(result.images, result.failed) for result in results] == [(PER_SHARD, None)] * 2
    yield made
    assert [path.read_bytes() for path in shards] == before


def test_parts_give_the_shards_of_one_run(
    shards: list[Path], outputs: dict[str, Path], tmp_path: Path
) -> None:
    for part in ("1/2", "2/2"):
        prune_here(prune_config(shards, tmp_path, "tiny", batch_size=4, part=part))
    assert contents(tmp_path) == contents(outputs["packed"])


def test_a_plan_over_all_shards_takes_no_part() -> None:
    with pytest.raises(UserError, match="--target-ratio plans over all shards"):
        prune_config(["a.tar"], "out", "tiny", part="1/2", target_ratio=0.5)


def photos_of(shards: list[Path]) -> dict[str, bytes]:
    return {
        name.removesuffix(".jpg"): data
        for path in shards
        for name, data in members_of(path)
        if name.endswith(".jpg")
    }


def test_masks_are_those_of_the_ranker_alone(shards: list[Path], outputs: dict[str, Path]) -> None:
    photos = photos_of(shards)
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in photos.values()]
    scores_NL = rank_images(pictures, load_ranker("tiny"), batch_size=7)
    expected = {
        key: sorted(np.argsort(-scores_L, kind="stable")[:KEPT].tolist())
        for key, scores_L in zip(photos, scores_NL, strict=True)
    }
    assert len(expected) == IMAGES
    assert len({tuple(positions) for positions in expected.values()}) == IMAGES
    for out in outputs.values():
        assert {row["sample_key"]: row["positions"] for row in index_of(out)} == expected
    read = PrunedDataset(str(outputs["packed"] / "shards"))
    assert {sample.key: sample.positions.tolist() for sample in read} == expected


# It leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", ["packed", "masked"])
def test_every_reader_of_tars_finds_the_same(
    shards: list[Path], outputs: dict[str, Path], form: str, tmp_path: Path
) -> None:
    for before in shards:
        after = outputs[form] / "shards" / before.name
        members = members_of(after)
        (tmp_path / before.name).mkdir()
        command = ["tar", "-xf", after, "-C", tmp_path / before.name]
        assert subprocess.run(command, capture_output=True, check=True).stderr == b""
        assert {path.name for path in (tmp_path / before.name).iterdir()} == {name for name, _ in members}
        assert all((tmp_path / before.name / name).read_bytes() == data for name, data in members)
        by_key = list(webdataset.WebDataset(str(after), shardshuffle=False))
        assert len(by_key) == PER_SHARD
        told = {f"{s['__key__']}.{field}": s[field] for s in by_key for field in s if field[0] != "_"}
        assert told == dict(members)
        # Counts, order and every other field are those of the input.
        keys = list(dict.fromkeys(name.partition(".")[0] for name, _ in members_of(before)))
        assert [sample["__key__"] for sample in by_key] == keys
        assert others(after) == others(before)


def others(path: Path) -> list[tuple[str, str]]:
    """Names and hashes of all members that pruning has no business with."""
    found = [(name, sha256(data).hexdigest()) for name, data in members_of(path)]
    kept = [(name, digest) for name, digest in found if name.partition(".")[2] in ("json", "cls")]
    assert len(kept) == 2 * PER_SHARD
    return kept


def test_viewers_open_the_images(outputs: dict[str, Path]) -> None:
    for form, ending, size in (("masked", ".jpg", (224, 224)), ("packed", ".patches.jpg", (KEPT * 16, 16))):
        files = [
            data
            for path in (outputs[form] / "shards").iterdir()
            for name, data in members_of(path)
            if name.endswith(ending)
        ]
        assert len(files) == IMAGES
        for data in files:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", size)


# It leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_packed_shards_read_as_documented(outputs: dict[str, Path]) -> None:
    """As docs/pruning.md has it, without any code of this project."""
    (path, *_) = sorted((outputs["packed"] / "shards").iterdir())
    read = PrunedDataset(str(path))
    plain = webdataset.WebDataset(str(path), shardshuffle=False)
    for sample, expected in zip(plain, read, strict=True):
        record = json.loads(sample["patches.json"])
        positions = np.flatnonzero(np.unpackbits(np.frombuffer(bytes.fromhex(record["kept"]), np.uint8)))
        mosaic = np.asarray(Image.open(io.BytesIO(sample["patches.jpg"])))
        block, grid = record["block"], record["grid"]
        canvas = np.full((grid * block, grid * block, 3), 128, np.uint8)
        for number, position in enumerate(positions):
            (y, x), (row, column) = divmod(number, record["columns"]), divmod(position, grid)
            canvas[row * block :, column * block :][:block, :block] = mosaic[y * block :, x * block :][
                :block, :block
            ]
        assert positions.tolist() == expected.positions.tolist()
        difference = canvas.astype(int) - expected.to_image(128).permute(1, 2, 0).numpy()
        assert abs(difference).max() <= 2, "decoders of JPEG differ in rounding"
