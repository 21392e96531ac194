"""Ray Data reads pruned shards, one task per shard, and collates what it read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchsieve.pipeline.pruned.collate import collate_naflex
from patchsieve.pipeline.pruned.dataset import PrunedDataset
from patchsieve.pipeline.pruned.sample import PrunedSample
from tests.pipeline.pruned.pruned_shards import make_photos, write_packed

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Data warns of its own settings as it makes them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data"),
]


def rows_of(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for sample in PrunedDataset(row["url"], decoders={"cls": int}):
        yield sample.to_row()


def keys_of(dataset: PrunedDataset) -> list[str]:
    return [sample.key for sample in dataset]


def test_rows_of_ray_data_make_the_same_batches(tmp_path: Path) -> None:
    import ray

    urls = []
    for number in range(2):
        photos = make_photos(3, number, keep=5 + number)
        urls.append({"url": str(write_packed(tmp_path / f"{number}.tar", photos))})
    rows = ray.data.from_items(urls, override_num_blocks=2).flat_map(rows_of).take_all()
    found = sorted((PrunedSample.from_row(row) for row in rows), key=lambda sample: sample.key)
    expected = list(PrunedDataset([row["url"] for row in urls], decoders={"cls": int}))
    for one, other in zip(found, expected, strict=True):
        names = ("shard", "key", "grid", "block", "original_size", "crop", "fields")
        assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
        np.testing.assert_array_equal(one.positions, other.positions)
    one_batch, other_batch = collate_naflex(found), collate_naflex(expected)
    assert all(torch.equal(one_batch[name], other_batch[name]) for name in other_batch)


def test_a_dataset_travels_whole(tmp_path: Path) -> None:
    import ray

    write_packed(tmp_path / "a.tar", make_photos(2))
    dataset = PrunedDataset(str(tmp_path / "a.tar"), shuffle_shards=True)
    assert ray.get(ray.remote(keys_of).remote(dataset)) == keys_of(dataset)
