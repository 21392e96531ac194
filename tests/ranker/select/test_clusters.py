"""Selection by clusters: against the rule written out patch by patch, and its counts, ties and extremes."""

from __future__ import annotations

import numpy as np
import pytest

from patchsieve.pipeline.errors import UserError
from patchsieve.ranker.select import selection


def some_clusters(
    seed: int, images: int, positions: int, clusters: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels `[N, L]` and centres `[N, K]`: any division in which each centre is in its own cluster."""
    random = np.random.default_rng(seed)
    scores = np.round(random.normal(0, 2, (images, positions)), 1)
    labels = random.integers(0, clusters, (images, positions)) ** 2 // clusters  # of unequal sizes
    centres = np.array([random.permutation(positions)[:clusters] for _ in range(images)])
    np.put_along_axis(labels, centres, np.arange(clusters)[None], axis=1)
    return scores, labels, centres


def by_hand(scores: list[float], labels: list[int], centres: list[int], rule: str, ratio: float) -> list[int]:
    """The rule, one cluster after the other, for one image."""
    clusters = len(centres)
    ranked = sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))
    kept = ranked[: int(ratio * clusters + 1e-6)]
    for number in sorted(range(clusters), key=lambda cluster: (-labels.count(cluster), cluster)):
        taken = centres[number] in kept
        if rule == "ours":
            taken = any(labels[patch] == number for patch in kept)
        if not taken and len(kept) < clusters:
            kept.append(centres[number])
    return sorted(kept)


@pytest.mark.parametrize("rule", ["ours", "published"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("clusters", [1, 2, 5, 10, 16])
def test_cluster_is_the_rule(clusters: int, ratio: float, rule: str) -> None:
    scores, labels, centres = some_clusters(clusters, 30, 16, clusters)
    keep = selection.cluster(scores, labels, centres, rule=rule, ratio=ratio)
    assert keep.dtype == np.bool_
    assert keep.sum(1).tolist() == [clusters] * 30
    for number, kept in enumerate(keep):
        expected = by_hand(
            scores[number].tolist(), labels[number].tolist(), centres[number].tolist(), rule, ratio
        )
        assert np.flatnonzero(kept).tolist() == expected


def test_our_rule_leaves_no_cluster_without_a_patch_that_there_was_room_for() -> None:
    scores, labels, centres = some_clusters(0, 50, 49, 20)
    for rule, fewest in (("ours", 6), ("published", 1)):
        keep = selection.cluster(scores, labels, centres, rule=rule)
        met = [len(np.unique(label[kept])) for label, kept in zip(labels, keep, strict=True)]
        # 14 patches by score meet at least one cluster, and under our rule the 6 centres meet 6 others.
        assert min(met) >= fewest + (rule == "ours")
    ours = selection.cluster(scores, labels, centres)
    assert not np.array_equal(ours, selection.cluster(scores, labels, centres, rule="published"))


def test_the_two_rules_where_they_part() -> None:
    # Clusters 0 and 1 of 3 patches, 2 of 2; by score patches 1 and 4 stay, of clusters 0 and 1, no centre.
    labels = np.array([[0, 0, 0, 1, 1, 1, 2, 2]])
    scores = np.array([[0.0, 9, 0, 0, 8, 0, 0, 0]])
    centres = np.array([[0, 3, 6]])
    ours = selection.cluster(scores, labels, centres)
    assert np.flatnonzero(ours[0]).tolist() == [1, 4, 6]
    published = selection.cluster(scores, labels, centres, rule="published")
    assert np.flatnonzero(published[0]).tolist() == [0, 1, 4]


def test_published_ratio() -> None:
    scores, labels, centres = some_clusters(1, 5, 49, 10)
    highest = selection.topk(scores, 7)
    assert (selection.cluster(scores, labels, centres) >= highest).all()
    assert np.array_equal(
        selection.cluster(scores, labels, centres), selection.cluster(scores, labels, centres, ratio=0.7)
    )


def test_one_cluster_keeps_its_centre() -> None:
    keep = selection.cluster(np.arange(9.0)[None], np.zeros((1, 9), int), np.array([[4]]))
    assert np.flatnonzero(keep[0]).tolist() == [4]


def test_as_many_clusters_as_patches_keep_all() -> None:
    order = np.array([[3, 0, 2, 1]])
    assert selection.cluster(np.zeros((1, 4)), np.argsort(order), order).all()


def test_images_do_not_touch_each_other() -> None:
    scores, labels, centres = some_clusters(2, 12, 25, 8)
    keep = selection.cluster(scores, labels, centres)
    alone = [selection.cluster(scores[n : n + 1], labels[n : n + 1], centres[n : n + 1]) for n in range(12)]
    assert np.array_equal(keep, np.concatenate(alone))


@pytest.mark.parametrize(
    ("labels", "centres"),
    [
        ([[0, 0, 1, 1]], [[0, 1]]),  # a centre of the other cluster
        ([[0, 0, 1, 1]], [[0, 0]]),
        ([[0, 0, 1, 2]], [[0, 2]]),  # a label without a centre
        ([[0, -1, 1, 1]], [[0, 2]]),
        ([[0, 0, 1, 1]], [[0, 4]]),
        ([[0, 0, 1, 1]], [[0, -1]]),
        ([[0, 0, 1]], [[0, 2]]),
        ([[0, 0, 1, 1]], [0, 2]),
        ([[0, 0, 1, 1]], [[0, 2], [0, 2]]),
        ([[0, 0, 1, 1]], [[]]),
    ],
)
def test_clusters_that_do_not_fit(labels: list, centres: list) -> None:
    with pytest.raises(ValueError, match="cluster"):
        selection.cluster(np.zeros((1, 4)), np.array(labels), np.array(centres))


def test_settings_without_a_meaning() -> None:
    scores, labels, centres = some_clusters(3, 1, 9, 3)
    with pytest.raises(UserError, match="must be one of ours, published"):
        selection.cluster(scores, labels, centres, rule="best")
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="cluster ratio is"):
            selection.cluster(scores, labels, centres, ratio=ratio)
