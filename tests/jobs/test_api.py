"""The commands as calls: what they leave and what they give back."""

from __future__ import annotations

from pathlib import Path

import pytest

import patchsieve
from patchsieve.pipeline.errors import UserError
from tests.helpers.photos import photo_samples, write_shard
from tests.helpers.score_runs import save_small_teacher


@pytest.mark.ray
def test_from_photos_to_pruned_shards(ray_cluster: None, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "photos" / "a.tar", photo_samples(12, height=60, width=80))
    teacher = save_small_teacher(tmp_path)
    labels, ranker, pruned = (str(tmp_path / name) for name in ("labels", "ranker", "pruned"))
    processors = {"gpus_per_actor": 0.0, "max_actors": 1, "precision": "fp32"}

    scored = patchsieve.score(
        str(shard), out=labels, teacher=teacher, views="2", mask_ratio=0.75, **processors
    )
    assert (scored.exit_code, scored.rows) == (0, 24)
    fitted = patchsieve.train(
        [labels],
        out=ranker,
        model="vit_tiny_patch16_224",
        depth=1,
        views_per_image=4,
        held_out=0.4,
        batch_size=8,
        gpus_per_worker=0.0,
    )
    assert fitted.digest == patchsieve.load_ranker(ranker).digest
    done = patchsieve.prune([str(shard)], ranker=ranker, out=pruned, keep=0.25, **processors)
    assert (done.exit_code, done.kept) == (0, 12 * 9)
    assert len(list(patchsieve.PrunedDataset(f"{pruned}/shards/*.tar"))) == 12


def test_settings_that_cannot_be_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--views is '0'"):
        patchsieve.score("photos.tar", out=str(tmp_path / "out"), views="0")
    with pytest.raises(UserError, match="--keep is 2"):
        patchsieve.prune("photos.tar", ranker="tiny", out=str(tmp_path / "out"), keep=2)
    assert not (tmp_path / "out").exists()
