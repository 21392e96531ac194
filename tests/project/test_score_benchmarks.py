"""What the benchmarks of scores are made of: blocks of patches that are left out, and images that are dropped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.block_removal import BLOCKS, SIDE, accuracy, block_changes, block_scores, block_views
from benchmarks.image_pruning import keeps, report
from patchsieve.pipeline.images.patches import normalise
from tests.helpers.teachers import SMALL, random_teacher

GRID, IMAGES = SMALL.grid, 50


@pytest.mark.parametrize(("grid", "partition", "shown"), [(14, 0, 14), (14, 1, 12), (6, 0, 6), (8, 3, 6)])
def test_views_of_blocks_show_every_block_of_a_partition(grid: int, partition: int, shown: int) -> None:
    views = block_views("a", grid, partition)
    assert views.shape[1:] == (BLOCKS, SIDE**2)
    for blocks in views:
        assert len(set(blocks.ravel().tolist())) == BLOCKS * SIDE**2, "none shares a patch with another"
    rows, columns = np.divmod(views.reshape(-1, SIDE**2), grid)
    assert (np.ptp(rows, axis=1) == 1).all()
    assert (np.ptp(columns, axis=1) == 1).all()
    assert len(set(views.ravel().tolist())) == shown**2
    assert rows.min() == columns.min() == partition % 2


def test_a_block_is_left_out_whole_before_the_decoder() -> None:
    model = random_teacher(SMALL)
    patches = torch.randint(0, 256, (GRID**2, SMALL.patch_values), dtype=torch.uint8)
    views = block_views("a", GRID, 0)
    found = block_changes(model, patches, views)
    assert found.shape == views.shape[:2]
    # One view, one block, written out.
    seen = torch.from_numpy(views[1].ravel())
    hidden = torch.tensor([[place for place in range(GRID**2) if place not in seen.tolist()]])
    latent = model.encode(normalise(patches[seen])[None], seen[None]).detach()
    whole = model.decode(latent, seen[None], hidden, hidden.shape[1])
    others = [place for place in range(len(seen)) if place // SIDE**2 != 2]
    tokens = latent[:, [0, *(1 + place for place in others)]]
    without = model.decode(tokens, seen[None][:, others], hidden, hidden.shape[1])
    assert found[1, 2] == pytest.approx((without - whole).abs().mean().item(), rel=1e-4)
    # A patch has the score of its block.
    scores = block_scores(model, "a", patches, 1).reshape(GRID // SIDE, SIDE, GRID // SIDE, SIDE)
    assert (scores == scores[:, :1, :, :1]).all()


def test_a_photo_is_named_by_a_probe_that_did_not_see_it() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    told = (random.normal(size=(20, 3)) + 6 * labels[:, None]).astype(np.float32)
    assert accuracy(told, labels, 2).mean() > 0.95
    # Features that are a photo's own: what is fitted says nothing of what is tested.
    assert accuracy(np.eye(20, dtype=np.float32), labels, 2).mean() < 0.7


def test_the_lowest_of_what_may_go_are_dropped() -> None:
    values = np.random.default_rng(1).permutation(IMAGES).astype(float)
    free = np.arange(IMAGES) % 5 != 0
    by = {"low score": values, "high score": -values}
    low, high = (keeps(rule, 0.25, free, by, 0) for rule in by)
    assert low.sum() == high.sum() == 30
    assert not (low & ~free).any()
    assert values[low].min() > values[free & ~low].max()
    assert values[high].max() < values[free & ~high].min()
    draws = [keeps("random", 0.25, free, by, seed) for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert {int(draw.sum()) for draw in draws} == {30}


def test_rules_are_compared_with_random_at_the_same_share() -> None:
    right = np.random.default_rng(2).random((3, IMAGES)) < 0.5
    better = right | (np.arange(IMAGES) < 10)
    by = {"low score": np.arange(IMAGES), "few bytes": -np.arange(IMAGES)}
    found = report(
        {("full", 0.0): better, ("low score", 0.2): better, ("random", 0.2): right},
        by,
        np.arange(2 * IMAGES).reshape(IMAGES, 2),
    )
    ahead = [arm["ahead_of_random"] for arm in found["arms"]]
    assert ahead[0] is ahead[2] is None
    assert ahead[1].value == pytest.approx(better.mean() - right.mean())
    assert found["score_with_bytes"] == pytest.approx(-1)
    assert found["score_of_two_views"] == pytest.approx(1)
